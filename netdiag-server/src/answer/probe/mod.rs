//! What came of probes, schema `netdiag.probe/v1`.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::followed::{self, FollowedEntry};
use super::{NotSeen, not_seen};
use crate::probe::ladder::Ladder;
use crate::probe::matrix::Matrix;
use crate::probe::secret::{Compared, Outcome};
use crate::probe::{self, Kind, Probed, Series, Tally, endpoints};

mod histogram;
mod mtu;
mod text;
mod words;

pub use mtu::MtuAdvice;

pub const PROBE_SCHEMA: &str = "netdiag.probe/v1";

/// What `netdiag probe` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeAnswer {
    /// Always `netdiag.probe/v1`.
    pub schema: String,
    pub cluster: String,
    /// RFC 3339.
    #[schemars(with = "String")]
    pub at: Timestamp,
    pub kind: Kind,
    /// `pod/shop/client`, and the node it runs on.
    pub from: String,
    pub node: String,
    /// As it was asked.
    pub to: String,
    pub status: ProbeStatus,
    /// One sentence.
    pub verdict: String,
    /// One for each address, or for each server of a name. A name's own lookup comes first.
    pub series: Vec<SeriesEntry>,
    /// One for each family.
    pub ladders: Vec<Ladder>,
    pub matrix: Option<Matrix>,
    pub not_seen: Vec<NotSeen>,
    /// What was left out to keep the answer short; empty when nothing was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub truncated: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ProbeStatus {
    /// Everything was tried, and worked.
    Well,
    /// Something that was tried failed.
    Failed,
    /// Nothing failed, and not everything could be tried.
    Unknown,
}

/// The probes to one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SeriesEntry {
    pub to: String,
    pub status: ProbeStatus,
    /// Class, errno, stage, time, and who said it.
    pub verdict: String,
    /// What differs between endpoints, with its chance; empty when nothing does.
    pub endpoints: String,
    pub tally: Tally,
    /// What one attempt learnt, in words: a failed one, else the last.
    pub details: Vec<Detail>,
    /// The way of the last attempt, when it was to be followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed: Option<FollowedEntry>,
    /// The served certificate beside that of the Secret that was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Compared>,
    /// Path MTU: the value of this way, and what to set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<MtuAdvice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Detail {
    pub label: String,
    pub text: String,
}

/// Puts results into words. Pure.
pub fn build(probed: &Probed, at: Timestamp) -> ProbeAnswer {
    let request = &probed.plan.request;
    let series = probed.series.iter().map(|series| entry(series, probed)).collect();
    let mut answer = ProbeAnswer {
        schema: PROBE_SCHEMA.to_owned(),
        cluster: probed.cluster.name.clone(),
        at,
        kind: request.kind,
        from: probe::words_of(&probed.plan.client),
        node: probed.plan.client.node.clone(),
        to: request.to.clone(),
        status: ProbeStatus::Unknown,
        verdict: String::new(),
        series,
        ladders: probed.ladders.clone(),
        matrix: probed.matrix.clone(),
        not_seen: not_seen::grouped(&probed.gaps),
        truncated: String::new(),
    };
    answer.judge();
    answer
}

fn entry(series: &Series, probed: &Probed) -> SeriesEntry {
    let mut entry = SeriesEntry {
        to: series.to.clone(),
        status: ProbeStatus::Unknown,
        verdict: String::new(),
        endpoints: String::new(),
        tally: series.tally.clone(),
        details: words::details(&series.tally, &probed.cluster),
        followed: series.followed.as_ref().map(|way| followed::entry(way, &probed.cluster)),
        secret: series.compared.clone(),
        mtu: mtu::advice(series, probed),
    };
    entry.judge();
    entry
}

impl SeriesEntry {
    fn judge(&mut self) {
        let outcome = self.secret.as_ref().map(|compared| compared.outcome);
        self.status = match () {
            () if self.tally.failed > 0 => ProbeStatus::Failed,
            () if matches!(outcome, Some(Outcome::Different | Outcome::Missing)) => ProbeStatus::Failed,
            () if self.tally.is_well() && outcome != Some(Outcome::Unknown) => ProbeStatus::Well,
            () => ProbeStatus::Unknown,
        };
        self.verdict = words::verdict(&self.tally);
        if let Some(compared) = &self.secret {
            self.verdict.push_str(&format!("; {}", compared.words));
        }
        if let (ProbeStatus::Failed, Some(followed)) = (self.status, &self.followed) {
            self.verdict.push_str(&format!("; {}", followed.way));
        }
        self.endpoints = endpoints::sentence(&self.tally.endpoints).unwrap_or_default();
    }
}

impl ProbeAnswer {
    /// The same request, continued so much later: counts and times become those of one long series.
    pub fn join(&mut self, next: Self, later_us: u64) {
        self.at = next.at;
        for series in next.series {
            match self.series.iter_mut().find(|known| known.to == series.to) {
                Some(known) => {
                    known.tally.join(series.tally, later_us);
                    known.details = series.details;
                    known.followed = series.followed.or(known.followed.take());
                    known.secret = series.secret.or(known.secret.take());
                    known.mtu = series.mtu.or(known.mtu.take());
                    known.judge();
                }
                None => self.series.push(series),
            }
        }
        for gap in next.not_seen {
            if !self.not_seen.contains(&gap) {
                self.not_seen.push(gap);
            }
        }
        self.judge();
    }

    fn judge(&mut self) {
        let broken = self
            .ladders
            .iter()
            .any(|ladder| ladder.rungs.iter().any(|rung| rung.holds(rung.main_role()) == Some(false)));
        let cells = || self.matrix.iter().flat_map(|matrix| matrix.rows.iter().flat_map(|row| &row.cells));
        let failed = broken
            || cells().any(|cell| cell.failed > 0)
            || self.series.iter().any(|series| series.status == ProbeStatus::Failed);
        let climbed = self.ladders.iter().any(|ladder| ladder.rungs.iter().any(|rung| !rung.attempts.is_empty()));
        let tried = climbed || cells().any(|cell| cell.made > 0) || !self.series.is_empty();
        self.status = match () {
            () if failed => ProbeStatus::Failed,
            () if !tried || !self.not_seen.is_empty() => ProbeStatus::Unknown,
            () if self.series.iter().any(|series| series.status == ProbeStatus::Unknown) => ProbeStatus::Unknown,
            () => ProbeStatus::Well,
        };
        self.verdict = self.summary();
        let ways = mtu::ways(&self.series).join("; ");
        match self.status {
            _ if ways.is_empty() => {}
            ProbeStatus::Well => self.verdict = ways,
            _ => self.verdict.push_str(&format!("; {ways}")),
        }
    }

    /// What failed among other ways, and was sent again to be followed.
    fn once_more(&self) -> String {
        let mut words = String::new();
        for series in self.series.iter().filter(|series| series.followed.is_some()) {
            words.extend(["; ", &series.to, ": ", &series.verdict]);
        }
        words
    }

    fn summary(&self) -> String {
        if let Some(ladder) = self.ladders.first() {
            let said: Vec<String> = match self.ladders.as_slice() {
                [_] => vec![ladder.conclusion.clone()],
                all => all.iter().map(|ladder| format!("{}: {}", ladder.family, ladder.conclusion)).collect(),
            };
            return said.join("; ") + &self.once_more();
        }
        if let Some(matrix) = &self.matrix {
            return words::of_matrix(matrix) + &self.once_more();
        }
        let worst = self.series.iter().filter(|series| series.status == ProbeStatus::Failed).collect::<Vec<_>>();
        match worst.as_slice() {
            [] => match self.series.iter().find(|series| series.status == ProbeStatus::Unknown) {
                Some(series) => series.verdict.clone(),
                None if self.series.is_empty() => "nothing was sent".to_owned(),
                None => match self.series.as_slice() {
                    [one] => one.verdict.clone(),
                    all => format!("all {} targets answer", all.len()),
                },
            },
            [one] if self.series.len() == 1 => one.verdict.clone(),
            some => {
                let said: Vec<String> =
                    some.iter().map(|series| format!("{}: {}", series.to, series.verdict)).collect();
                said.join("; ")
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
