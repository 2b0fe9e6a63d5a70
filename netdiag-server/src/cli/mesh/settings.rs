//! What a mesh is to probe and to keep: options and requests that become [`Settings`].

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::{Failure, request};
use crate::mesh::{MAX_USER_TARGETS, ProbeTarget, Settings, Slo, UserTarget, target};

/// A target of 1 is kept by a mesh that loses everything.
const PERCENT: f64 = 100.0;

/// What is probed besides nodes, and what has to be kept.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Wanted {
    /// Probe this by TCP from every node, too; up to 16 times
    #[arg(long, value_name = "NAME=ADDRESS:PORT")]
    pub(super) mesh_target: Vec<UserTarget>,
    /// Probe what this file lists, too: tcp, tls, icmp, http, https and dns, as YAML `targets:`
    #[arg(long, value_name = "FILE")]
    mesh_targets: Option<PathBuf>,
    /// Share of attempts that may fail; else what the server's mesh has to keep, or 0.1
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    loss_target: Option<f64>,
    /// What 99 of 100 answers must keep; else what the server's mesh has to keep, or 100ms
    #[arg(long, value_name = "TIME", value_parser = request::parse_timeout)]
    p99_target: Option<u64>,
}

impl Wanted {
    pub(super) fn request(&self) -> Result<MeshRequest, Failure> {
        Ok(MeshRequest {
            loss: self.loss_target.map(|percent| percent / PERCENT),
            p99_us: self.p99_target.map(|ms| ms.saturating_mul(1_000)),
            targets: self.mesh_target.iter().map(ToString::to_string).collect(),
            entries: self.entries()?,
            only_kept: false,
        })
    }

    fn entries(&self) -> Result<Vec<ProbeTarget>, Failure> {
        let Some(path) = &self.mesh_targets else { return Ok(Vec::new()) };
        #[expect(clippy::disallowed_methods, reason = "a file that the user names")]
        let read = std::fs::read_to_string(path);
        let text = read.map_err(|error| Failure(format!("cannot read {}: {error}", path.display())))?;
        target::parse(&text).map_err(|why| Failure(format!("{}: {why}", path.display())))
    }
}

/// `POST /v1/mesh`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct MeshRequest {
    /// Share of attempts that may fail, 0 to 1; the server's own target of service when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// What 99 of 100 answers must keep, in microseconds; the server's own when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// `NAME=ADDRESS:PORT`, as for `netdiag serve --mesh-target`; only when the server keeps no mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// As a file of targets has them; only when the server keeps no mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<ProbeTarget>,
    /// Probe nothing when the server keeps no mesh: for who may look, and may not probe.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_kept: bool,
}

impl MeshRequest {
    pub(super) fn settings(&self, agent_port: u16) -> Result<Settings, Failure> {
        let found = self.targets.len() + self.entries.len();
        if found > MAX_USER_TARGETS {
            return Err(Failure(format!(
                "{found} targets, {MAX_USER_TARGETS} are the limit: name the most important ones"
            )));
        }
        let targets = self.targets.iter().map(|text| text.parse::<UserTarget>());
        let mut targets: Vec<UserTarget> = targets.collect::<Result<_, _>>().map_err(Failure)?;
        for entry in &self.entries {
            targets.push(entry.check().map_err(|why| Failure(format!("target {:?}: {why}", entry.name)))?);
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = targets.iter().find(|target| !names.insert(&target.name)) {
            return Err(Failure(format!("two targets are named {}: give each a name of its own", twice.name)));
        }
        let slo = self.slo(Slo::default());
        if !(0.0..=1.0).contains(&slo.loss) {
            return Err(Failure(format!("a share of {} cannot be lost, use 0 to 1", slo.loss)));
        }
        Ok(Settings { targets, agent_port, slo })
    }

    pub(super) fn slo(&self, usual: Slo) -> Slo {
        Slo { loss: self.loss.unwrap_or(usual.loss), p99_us: self.p99_us.unwrap_or(usual.p99_us) }
    }
}

/// `0.1`, `0.1%`: 0 to 100.
fn parse_percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').trim().parse::<f64>() {
        Ok(percent) if (0.0..=PERCENT).contains(&percent) => Ok(percent),
        _ => Err("use a share in percent, 0 to 100, such as 0.1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_in_percent() {
        assert_eq!(parse_percent("0.1"), Ok(0.1));
        assert_eq!(parse_percent("5%"), Ok(5.0));
        for wrong in ["", "-1", "101", "x", "NaN"] {
            assert!(parse_percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_a_mesh_is_refused() {
        let refused = |request: MeshRequest| request.settings(9443).map(|_| ()).unwrap_err().0;
        let targets = (0..=MAX_USER_TARGETS).map(|n| format!("t{n}=10.0.0.1:80")).collect();
        assert!(refused(MeshRequest { targets, ..MeshRequest::default() }).starts_with("17 targets, 16 are the limit"));
        assert!(refused(MeshRequest { loss: Some(1.5), ..MeshRequest::default() }).contains("use 0 to 1"));
        for (targets, says) in [
            (&["web"][..], "NAME=ADDRESS:PORT"),
            (&["web=10.0.0.1:80", "web=10.0.0.2:80"], "two targets are named web"),
        ] {
            let targets = targets.iter().map(|target| (*target).to_owned()).collect();
            let said = refused(MeshRequest { targets, ..MeshRequest::default() });
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn entries_of_a_file_stand_beside_targets_of_the_command_line() {
        let text = "targets: [{name: web, kind: http, to: 'http://10.0.0.1/', interval: 4s}]";
        let entries = target::parse(text).unwrap();
        let request = |name: &str| MeshRequest {
            targets: vec![format!("{name}=10.0.0.1:80")],
            entries: entries.clone(),
            ..MeshRequest::default()
        };
        let sent = serde_json::to_string(&request("tcp")).unwrap();
        let settings = serde_json::from_str::<MeshRequest>(&sent).unwrap().settings(9443).unwrap();
        let found: Vec<(&str, u32)> = settings.targets.iter().map(|target| (&*target.name, target.every)).collect();
        assert_eq!(found, [("tcp", 1), ("web", 2)]);
        assert!(request("web").settings(9443).unwrap_err().0.contains("two targets are named web"));
    }

    #[test]
    fn what_is_not_asked_for_is_the_servers_own() {
        let own = Slo { loss: 0.05, p99_us: 7_000 };
        assert_eq!(MeshRequest::default().slo(own), own);
        let asked = MeshRequest { p99_us: Some(900), ..MeshRequest::default() };
        assert_eq!(asked.slo(own), Slo { loss: 0.05, p99_us: 900 });
    }
}
