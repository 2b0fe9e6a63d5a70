//! What a condition found: the claim, its proofs, and the way out.

use jiff::Timestamp;
use netdiag_common::observation::probe::Outcome;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evidence::ObjectRef;

/// One cause, as its condition states it.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The objects at fault, the one to change first.
    pub subjects: Vec<ObjectRef>,
    /// Since when, where the evidence says so.
    pub since: Option<Timestamp>,
    pub impact: Impact,
    /// One sentence: lower case start, names, numbers with limits, no full stop. Never more than the proofs show.
    pub claim: String,
    /// At least one; two of different views for a certain answer. The probes that agree with `predicts` are added to them.
    pub proofs: Vec<Proof>,
    /// What the client meets if the claim is true. Probes that meet something else overrule the claim. Empty: any failure.
    pub predicts: &'static [Fate],
    pub fix: Fix,
}

/// How much of the path the cause breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Impact {
    /// Every connection of the path fails.
    Breaks,
    /// Some do: one endpoint of several, one node of several.
    Degrades,
}

/// How a connection ends, as its client sees it. The `Lookup…` ones end it before it begins: while its name is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// `ECONNREFUSED`: somebody said no.
    Refused,
    /// Nothing came back.
    Silence,
    /// `EHOSTUNREACH`, `ENETUNREACH` or another ICMP error.
    Unreachable,
    /// `EPERM`, `EACCES`: the own host's packet filter refused to send.
    NotPermitted,
    /// The connection is made at once and its answer comes late or never. No connect meets that: the kernel completes handshakes
    /// for the process.
    LateAnswer,
    /// The connection is made, and the client does not trust the certificate that it is shown. No connect meets that either.
    Distrusted,
    /// The name server answered, and the name has no address.
    LookupNoSuchName,
    /// The name server answered with an error of its own: `SERVFAIL`, `REFUSED`, …
    LookupServerError,
    /// The query was refused by ICMP.
    LookupRefused,
    /// The query got no answer.
    LookupSilence,
    LookupUnreachable,
    LookupNotPermitted,
}

impl Fate {
    /// None for success and for errors of our own making.
    pub fn of(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Connected | Outcome::Answered { .. } => None,
            Outcome::TimedOut { .. } => Some(Self::Silence),
            Outcome::Failed { errno, .. } => match errno.as_str() {
                "ECONNREFUSED" => Some(Self::Refused),
                "ETIMEDOUT" => Some(Self::Silence),
                "EHOSTUNREACH" | "ENETUNREACH" | "EHOSTDOWN" | "ENETDOWN" | "ENOPROTOOPT" | "EPROTO" => {
                    Some(Self::Unreachable)
                }
                "EPERM" | "EACCES" => Some(Self::NotPermitted),
                _ => None,
            },
        }
    }

    /// The same for the lookup of a name: an answer without address is a failure, too.
    pub fn of_lookup(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Answered { rcode, addresses, .. } => match rcode.as_str() {
                "NOERROR" if !addresses.is_empty() => None,
                "NOERROR" | "NXDOMAIN" => Some(Self::LookupNoSuchName),
                _ => Some(Self::LookupServerError),
            },
            _ => Self::of(outcome).map(|fate| match fate {
                Self::Refused => Self::LookupRefused,
                Self::Unreachable => Self::LookupUnreachable,
                Self::NotPermitted => Self::LookupNotPermitted,
                _ => Self::LookupSilence,
            }),
        }
    }

    /// It comes after the handshake of TCP.
    pub fn is_after_connect(self) -> bool {
        matches!(self, Self::LateAnswer | Self::Distrusted)
    }

    pub fn is_lookup(self) -> bool {
        matches!(
            self,
            Self::LookupNoSuchName
                | Self::LookupServerError
                | Self::LookupRefused
                | Self::LookupSilence
                | Self::LookupUnreachable
                | Self::LookupNotPermitted
        )
    }

    pub fn words(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Silence => "no answer",
            Self::Unreachable => "unreachable",
            Self::NotPermitted => "not permitted",
            Self::LateAnswer => "a late answer",
            Self::Distrusted => "a certificate that is not trusted",
            Self::LookupNoSuchName => "lookup finds no such name",
            Self::LookupServerError => "lookup fails in the name server",
            Self::LookupRefused => "lookup refused",
            Self::LookupSilence => "lookup without answer",
            Self::LookupUnreachable => "lookup unreachable",
            Self::LookupNotPermitted => "lookup not permitted",
        }
    }
}

/// Which of the views a proof comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ViewKind {
    /// What the Kubernetes API says should be.
    Intended,
    /// What a node's kernel was told.
    Programmed,
    /// What packets did by themselves.
    Observed,
    /// What a packet of ours did.
    Probe,
}

/// One observation that supports the claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Proof {
    pub view: ViewKind,
    /// Where it was read: `EndpointSlice shop/web-x2f4`, `nf_tables`, `sockets of pod shop/web-1`.
    pub source: String,
    /// The node it was read on; empty for the API.
    pub node: String,
    /// When it was read, RFC 3339.
    #[schemars(with = "String")]
    pub at: Timestamp,
    pub text: String,
}

impl Proof {
    pub fn intended(source: impl ToString, at: Timestamp, text: impl Into<String>) -> Self {
        Self { view: ViewKind::Intended, source: source.to_string(), node: String::new(), at, text: text.into() }
    }

    pub fn programmed(source: impl ToString, node: &str, at: Timestamp, text: impl Into<String>) -> Self {
        Self { view: ViewKind::Programmed, source: source.to_string(), node: node.to_owned(), at, text: text.into() }
    }

    pub fn observed(source: impl ToString, node: &str, at: Timestamp, text: impl Into<String>) -> Self {
        Self { view: ViewKind::Observed, source: source.to_string(), node: node.to_owned(), at, text: text.into() }
    }

    pub fn probe(source: impl ToString, node: &str, at: Timestamp, text: impl Into<String>) -> Self {
        Self { view: ViewKind::Probe, source: source.to_string(), node: node.to_owned(), at, text: text.into() }
    }
}

/// What to change, and how to see that it helped.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Fix {
    pub text: String,
    /// Commands a person may run as they stand. Empty when the right one depends on what was meant.
    pub commands: Vec<String>,
    /// The command that shows whether it worked.
    pub verify: String,
}
