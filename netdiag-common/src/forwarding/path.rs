//! What the evaluator answers: every decision about one packet in order, where it ended, and on which assumptions.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::conntrack::{Entry, State, Tuple};
use super::expression::Verdict;
use super::packet::Packet;
use super::routing::{Discard, Why};
use super::state::{ChainKey, Hook, Key, Route};
use super::virtual_server::VirtualServerKey;

/// What one step of the evaluation gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    Done(Outcome),
    /// Read these, then step again.
    Missing {
        keys: Vec<Key>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// More than one where the kernel chooses, or where something is not known.
    pub paths: Vec<Path>,
    /// There are further paths, which were not followed.
    pub cut: bool,
}

/// What sums of the same chances in another order may differ by. Far below the chance of one value of a draw of 32 bits.
const ROUNDING: f64 = 1e-12;

impl Outcome {
    /// Whether the packet ends as in the other outcome, whatever decides about it on the way: by the same ends, as the same packet of
    /// the same connection, and as often, as far as that is known. Not where further paths were not followed.
    pub fn ends_as(&self, other: &Self) -> bool {
        !self.cut && !other.cut && self.has_ends_of(other) && other.has_ends_of(self)
    }

    fn has_ends_of(&self, other: &Self) -> bool {
        other.paths.iter().all(|path| {
            let is_as_often = match (self.chance_of_end(path), other.chance_of_end(path)) {
                (Some(own), Some(others)) => (own - others).abs() < ROUNDING,
                _ => true,
            };
            is_as_often && self.paths.iter().any(|own| own.ends_as(path))
        })
    }

    /// Of all paths that end as this one does; none when that depends on what is not known.
    fn chance_of_end(&self, path: &Path) -> Option<f64> {
        self.paths.iter().filter(|own| own.ends_as(path)).map(Path::chance).sum()
    }
}

/// One thing that can happen to the packet. Decoded tolerantly: agents may be newer than who asks them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "super::told::Told")]
pub struct Path {
    pub assumptions: Vec<Assumption>,
    pub decisions: Vec<Decision>,
    /// What is on the way and was not evaluated, as if it let the packet pass unchanged.
    pub gaps: Vec<String>,
    pub end: End,
    /// As it was at the end.
    pub packet: Packet,
    /// Its connection at the end, if it is tracked.
    pub connection: Option<Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "assumption", rename_all = "snake_case")]
pub enum Assumption {
    /// The kernel chooses, and this path is what it does with these of its choices.
    Chance { at: Place, what: String, values: Vec<u32>, chance: f64 },
    /// It is not known whether this holds.
    Unknown { at: Place, what: String, holds: bool },
}

impl Path {
    /// How often the kernel takes this path; none when that depends on what is not known.
    pub fn chance(&self) -> Option<f64> {
        self.assumptions.iter().try_fold(1.0, |product, assumption| match assumption {
            Assumption::Chance { chance, .. } => Some(product * chance),
            Assumption::Unknown { .. } => None,
        })
    }

    fn ends_as(&self, other: &Self) -> bool {
        (&self.end, &self.packet, &self.connection) == (&other.end, &other.packet, &other.connection)
    }
}

/// A rule, or the policy of a base chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub hook: Hook,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// Connection tracking looked at the packet.
    Tracked {
        hook: Hook,
        tracked: Tracked,
    },
    /// All of a rule's expressions matched.
    Rule {
        hook: Hook,
        chain: ChainKey,
        handle: u64,
        verdict: Verdict,
        /// Elements of sets and maps that its lookups found.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        elements: Vec<FoundElement>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        comment: Option<Arc<str>>,
        /// The packet's mark afterwards; none when it is not known.
        mark: Option<u32>,
    },
    /// No rule of the chain decided. Rules that did not match to their end may have set the mark all the same.
    EndOfChain {
        hook: Hook,
        chain: ChainKey,
        mark: Option<u32>,
    },
    Policy {
        hook: Hook,
        chain: ChainKey,
        verdict: Verdict,
    },
    /// Address translation changed the packet.
    Translated {
        hook: Hook,
        from: Tuple,
        to: Tuple,
    },
    /// IPVS took the packet for one of its virtual servers.
    Scheduled {
        hook: Hook,
        server: VirtualServerKey,
        scheduler: String,
        /// The real server; none when no one takes connections.
        to: Option<SocketAddr>,
        /// Its place among those that take connections, from 1, and how many they are; none when the connection had it before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<(usize, usize)>,
    },
    Routed {
        hook: Hook,
        route: Route,
        /// The rule and the table's route behind it; none where the kernel does not say what was evaluated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<Box<Why>>,
    },
    /// A flowtable takes the connection, or forwards a packet of one that it took before.
    Flowtable {
        hook: Hook,
        /// Family, table and name.
        flowtable: String,
        /// Packets of its connections that come in on these pass no rules.
        devices: Vec<String>,
        step: FlowStep,
    },
    /// No program listens to the queue that the packet is given to.
    Unheard {
        hook: Hook,
        queue: u16,
        /// It goes on as if it were accepted, and is not dropped.
        bypass: bool,
    },
    /// A bridge hands the packet from one of its ports to another: it is not routed.
    Switched {
        hook: Hook,
        bridge: u32,
        /// By which it came in.
        port: u32,
        /// It passes the hooks of IP on its way.
        filtered: bool,
    },
    /// A rule gave it the socket of a transparent proxy, as if it were for that socket's address.
    Proxied {
        hook: Hook,
        to: SocketAddr,
    },
    /// The packet was compared with the largest one that leaves by its route.
    Measured {
        hook: Hook,
        interface: u32,
        /// Of IP packets, in bytes.
        mtu: u32,
        /// The route has one of its own; else it is the interface's.
        by_route: bool,
        /// Of the packet, in bytes from the IP header on.
        length: u32,
        size: Size,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowStep {
    /// By a rule, which this packet itself goes on behind.
    Added,
    Forwarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    Fits,
    /// It leaves in pieces.
    Fragmented,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tracked {
    State(State),
    Invalid,
    Untracked,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundElement {
    pub set: Arc<str>,
    /// Its key, or first key; empty for the element for all other keys.
    pub key: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// To a socket of this host, if one wants it.
    Delivered,
    /// Out of this interface.
    Sent {
        interface: u32,
        gateway: Option<IpAddr>,
    },
    Dropped {
        by: Place,
    },
    Rejected {
        by: Place,
        with: Reject,
    },
    /// To a program that listens to the queue.
    Queued {
        by: Place,
        number: u16,
        /// The first and the last, where it is one of several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        among: Option<(u16, u16)>,
    },
    /// Something else took it, and answers or forwards it by itself.
    Taken {
        by: Place,
        what: String,
    },
    NoRoute {
        why: String,
    },
    /// By routing itself: a source that is not let in, forwarding that is off.
    Discarded(Discard),
    /// Its time to live ended here.
    HopsExhausted,
    /// It is longer than what leaves by this interface, or than what the device behind it takes.
    TooBig {
        interface: u32,
        /// In bytes; of the device behind the interface when the sender is not told.
        mtu: u32,
        /// None when it is dropped without a word.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        with: Option<Reject>,
    },
    Unknown {
        by: Place,
        because: String,
    },
}

/// What the sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reject {
    TcpReset,
    /// Of ICMP or ICMPv6, by the packet's protocol.
    Unreachable {
        kind: u8,
        code: u8,
    },
}
