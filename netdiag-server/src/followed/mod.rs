//! A probe followed by the kernels: what became of its packet on every node that it passed, put together to one way.
//!
//! The agents tell of each device that a packet passes, in each network namespace. Their clocks say nothing about each other:
//! within a node events have an order, and between nodes the packet itself tells it, by its time to live.

mod ask;
mod join;
#[cfg(test)]
pub(crate) mod tests;

use std::net::SocketAddr;

use netdiag_common::Gap;
use netdiag_common::observation::Owner;
use netdiag_common::observation::rules::Hook;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use ask::{Asked, follow};
pub use join::join;

use crate::trace::Leg;

/// Which packet of several with one tuple is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    First,
    /// That with the largest TTL: of a path, the one that was to get farthest.
    Farthest,
    /// The smallest that has more bytes than this; without any, the largest. Of a search of the path MTU: what is too big.
    Above {
        bytes: u32,
    },
}

/// What became of the packet.
#[derive(Debug, Clone)]
pub struct Followed {
    /// In the order of the packet's way.
    pub steps: Vec<Step>,
    pub end: End,
    /// What could not be seen of it.
    pub gaps: Vec<Gap>,
}

/// One thing that happened to it.
#[derive(Debug, Clone)]
pub struct Step {
    pub node: String,
    /// Whose network namespace of that node.
    pub netns: Owner,
    /// The device, by its name there or its index; none where none is involved.
    pub interface: Option<String>,
    pub what: What,
    /// The packet's addresses afterwards.
    pub ends: Ends,
}

/// Source and destination; ports are 0 where the protocol has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

#[derive(Debug, Clone)]
pub enum What {
    /// A device has it, past all filters of this namespace.
    Sent,
    Received,
    /// Its addresses were others before.
    Translated {
        from: Ends,
    },
    Dropped(Dropped),
    /// A listener has a connection with it.
    Delivered,
}

#[derive(Debug, Clone)]
pub struct Dropped {
    /// `NETFILTER_DROP`, `NO_SOCKET`, …
    pub reason: String,
    /// The kernel's function.
    pub function: String,
    pub hook: Option<Hook>,
    /// What the rules and routes of that namespace say they do with such a packet, when they were asked and stop it too.
    pub by: Option<Box<Leg>>,
}

/// How the way ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum End {
    /// An answer that is no refusal came back to the client.
    Answered,
    /// It arrived, and no answer was seen at the client.
    Delivered,
    Dropped,
    /// It arrived, and its answer was dropped: the last step.
    AnswerDropped,
    /// It was refused: by a TCP reset, or an ICMP error.
    Refused,
    /// Behind the last step nobody saw it again.
    Lost,
    /// Nobody saw it at all.
    NotSeen,
}
