//! What a server shows beside the Secret that it should have its certificate from.

use netdiag_common::Gap;
use netdiag_common::observation::series::tls::Certificate;
use netdiag_common::observation::series::{HttpReport, TlsReport};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::PlanError;
use super::rights::Rights;
use super::run::Sender;
use super::tally::Tally;
use crate::ask::Source;
use crate::kube::Kept;

/// A Secret by its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretName {
    pub namespace: String,
    pub name: String,
}

/// The served certificate beside a Secret's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Compared {
    /// `shop/web-tls`
    pub secret: String,
    pub outcome: Outcome,
    /// A clause.
    pub words: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Outcome {
    Same,
    Different,
    /// There is no such Secret.
    Missing,
    /// Nothing was served, or the Secret could not be read.
    Unknown,
}

impl std::str::FromStr for SecretName {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let parts = text
            .split_once('/')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'));
        let (namespace, name) = parts.ok_or_else(|| PlanError::Word {
            what: "the Secret",
            given: text.to_owned(),
            wanted: "NAMESPACE/NAME",
        })?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl std::fmt::Display for SecretName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl<S: Source, R: Rights> Sender<'_, S, R> {
    /// Whoever asks must be allowed to get the Secret, besides this program. A Secret that could not be read is a gap, too.
    pub(super) async fn compare(&self, tally: &Tally, secret: &SecretName) -> (Compared, Option<Gap>) {
        let SecretName { namespace, name } = secret;
        let kept = match self.rights.may_get_secret(namespace, name).await {
            Ok(()) => self.source.certificate(namespace, name).await,
            Err(denied) => Err(Gap {
                what: format!("the certificate of Secret {secret}"),
                node: None,
                reason: netdiag_common::GapReason::Rights,
                why: denied.to_string(),
                remedy: "ask as somebody who may get that Secret".to_owned(),
            }),
        };
        let compared = compared(secret, served(tally).as_ref(), &kept);
        (compared, kept.err())
    }

    /// The first of these Secrets whose certificate is served; else what the last one came to.
    pub(super) async fn compare_any(&self, tally: &Tally, secrets: &[SecretName]) -> Option<Compared> {
        let mut last = None;
        for secret in secrets {
            let (compared, _) = self.compare(tally, secret).await;
            let is_same = compared.outcome == Outcome::Same;
            last = Some(compared);
            if is_same {
                break;
            }
        }
        last
    }
}

/// The server's own certificate, of the first attempt that saw one.
fn served(tally: &Tally) -> Option<Certificate> {
    let mut chains = tally.attempts.iter().filter_map(|attempt| {
        let report = &attempt.report;
        let of_http = || serde_json::from_value::<HttpReport>(report.clone()).ok().and_then(|report| report.tls);
        serde_json::from_value::<TlsReport>(report.clone()).ok().or_else(of_http)
    });
    chains.find_map(|report| report.chain.into_iter().next())
}

fn compared(secret: &SecretName, served: Option<&Certificate>, kept: &Result<Option<Kept>, Gap>) -> Compared {
    let (outcome, words) = match (served, kept) {
        (_, Ok(None)) => (Outcome::Missing, format!("there is no Secret {secret}")),
        (_, Err(gap)) => (Outcome::Unknown, format!("Secret {secret} could not be read: {}; {}", gap.why, gap.remedy)),
        (None, Ok(Some(_))) => (Outcome::Unknown, format!("no certificate was served to compare Secret {secret} with")),
        (Some(served), Ok(Some(kept))) if served.sha256 == kept.sha256 => {
            (Outcome::Same, format!("the certificate of Secret {secret} is served"))
        }
        (Some(served), Ok(Some(kept))) => {
            let of = |serial: &str, not_after: &str, names: &[String]| {
                format!("serial {serial}, until {not_after}, for {}", names.join(", "))
            };
            let shown = of(&served.serial, &served.not_after, &served.names);
            let wanted = of(&kept.serial, &kept.not_after, &kept.names);
            let words = format!("another certificate is served ({shown}) than that of Secret {secret} ({wanted})");
            (Outcome::Different, words)
        }
    };
    Compared { secret: secret.to_string(), outcome, words }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(sha256: &str) -> Certificate {
        Certificate {
            subject: String::new(),
            issuer: String::new(),
            names: vec!["shop.example".to_owned()],
            not_before: String::new(),
            not_after: "2026-01-01T00:00:00Z".to_owned(),
            sha256: sha256.to_owned(),
            serial: "01".to_owned(),
        }
    }

    #[test]
    fn a_certificate_that_was_renewed_and_not_loaded_is_told_with_both() {
        let secret: SecretName = "shop/web-tls".parse().expect("a Secret");
        let kept = Ok(Some(Kept {
            sha256: "ab".to_owned(),
            serial: "02".to_owned(),
            not_after: "2027-01-01T00:00:00Z".to_owned(),
            names: vec!["shop.example".to_owned()],
        }));
        assert_eq!(compared(&secret, Some(&served("ab")), &kept).outcome, Outcome::Same);
        let different = compared(&secret, Some(&served("cd")), &kept);
        assert_eq!(different.outcome, Outcome::Different);
        assert_eq!(
            different.words,
            "another certificate is served (serial 01, until 2026-01-01T00:00:00Z, for shop.example) than that of Secret \
             shop/web-tls (serial 02, until 2027-01-01T00:00:00Z, for shop.example)"
        );
        assert_eq!(compared(&secret, None, &kept).outcome, Outcome::Unknown);
        assert_eq!(compared(&secret, Some(&served("cd")), &Ok(None)).outcome, Outcome::Missing);
    }

    #[test]
    fn a_secret_is_named_with_its_namespace() {
        for text in ["web-tls", "/web-tls", "shop/", "a/b/c"] {
            assert!(text.parse::<SecretName>().is_err(), "{text}");
        }
    }
}
