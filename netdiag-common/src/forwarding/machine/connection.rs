//! What connection tracking attached to the packet (`nft_ct.c`).

use std::net::IpAddr;

use super::{Run, Tracking};
use crate::forwarding::conntrack::{Direction, State};
use crate::forwarding::expression::Verdict;
use crate::forwarding::fact::Fact;

/// `enum nft_ct_keys`
mod key {
    pub const STATE: u32 = 0;
    pub const DIRECTION: u32 = 1;
    pub const STATUS: u32 = 2;
    pub const MARK: u32 = 3;
    pub const HELPER: u32 = 6;
    pub const NETWORK_PROTOCOL: u32 = 7;
    pub const SOURCE: u32 = 8;
    pub const DESTINATION: u32 = 9;
    pub const PROTOCOL: u32 = 10;
    pub const SOURCE_PORT: u32 = 11;
    pub const DESTINATION_PORT: u32 = 12;
    pub const PACKETS: u32 = 14;
    pub const BYTES: u32 = 15;
    pub const ZONE: u32 = 17;
    pub const SOURCE_IPV4: u32 = 19;
    pub const DESTINATION_IPV4: u32 = 20;
    pub const SOURCE_IPV6: u32 = 21;
    pub const DESTINATION_IPV6: u32 = 22;
}

/// `NF_CT_STATE_*_BIT`
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 2;
const RELATED: u32 = 4;
const NEW: u32 = 8;
const UNTRACKED: u32 = 64;

impl Run<'_> {
    /// `nft_ct_get_eval`
    pub(super) fn ct(&mut self, key: u32, direction: Option<u8>, to: u32) -> Verdict {
        if let Tracking::Unknown(why) = &self.tracking {
            let why = why.clone();
            self.store_unknown(to, width(key), &format!("ct key {key} of the packet, because {why}"));
            return Verdict::Continue;
        }
        if key == key::STATE {
            let bits = match &self.tracking {
                Tracking::Unseen | Tracking::Invalid | Tracking::Unknown(_) => INVALID,
                Tracking::Untracked => UNTRACKED,
                Tracking::Template { .. } => NEW,
                Tracking::Tracked(tracked) => match tracked.state {
                    State::New => NEW,
                    State::Established => ESTABLISHED,
                    State::Related => RELATED,
                },
            };
            return self.store_fact(to, Fact::Known(bits.to_ne_bytes()));
        }
        let tracked = match &self.tracking {
            Tracking::Tracked(tracked) => tracked.clone(),
            // The stand-in that carries a zone until connections are looked up has a state and nothing else.
            _ => return Verdict::Break,
        };
        let entry = &tracked.entry;
        let tuple = if direction == Some(1) { &entry.reply } else { &entry.original };
        match key {
            key::DIRECTION => self.store_fact(to, Fact::Known([u8::from(entry.direction == Direction::Reply)])),
            key::STATUS => self.store_fact(to, Fact::Known(entry.status.to_ne_bytes())),
            key::MARK => self.store_fact(to, Fact::Known(entry.mark.to_ne_bytes())),
            // `NFPROTO_IPV4`, `NFPROTO_IPV6`
            key::NETWORK_PROTOCOL => {
                self.store_fact(to, Fact::Known([if entry.original.source.is_ipv4() { 2 } else { 10 }]))
            }
            key::PROTOCOL => self.store_fact(to, Fact::Known([entry.original.protocol])),
            key::ZONE => self.store_fact(to, Fact::Known(entry.zone.to_ne_bytes())),
            key::SOURCE => self.store_address(to, tuple.source),
            key::DESTINATION => self.store_address(to, tuple.destination),
            key::SOURCE_IPV4 if tuple.source.is_ipv4() => self.store_address(to, tuple.source),
            key::DESTINATION_IPV4 if tuple.source.is_ipv4() => self.store_address(to, tuple.destination),
            key::SOURCE_IPV6 if tuple.source.is_ipv6() => self.store_address(to, tuple.source),
            key::DESTINATION_IPV6 if tuple.source.is_ipv6() => self.store_address(to, tuple.destination),
            key::SOURCE_IPV4..=key::DESTINATION_IPV6 => Verdict::Break,
            key::SOURCE_PORT | key::DESTINATION_PORT => {
                let destination = key == key::DESTINATION_PORT;
                let port = if destination { tuple.destination_port } else { tuple.source_port };
                // What the answer comes from and goes to is what the packet was changed to.
                let ends = tracked.unknown_ports;
                if direction == Some(1) && if destination { ends.source } else { ends.destination } {
                    self.store_unknown(to, 2, "the port that address translation chose");
                    Verdict::Continue
                } else {
                    self.store_fact(to, Fact::Known(port.to_be_bytes()))
                }
            }
            // A rule that asks for them has the kernel count, so the first packet is counted when it gets here.
            key::PACKETS | key::BYTES if tracked.new => {
                let count = u64::from(direction != Some(1));
                let count = if key == key::BYTES { count * u64::from(self.packet.length) } else { count };
                self.store_fact(to, Fact::Known(count.to_ne_bytes()))
            }
            key::HELPER if tracked.new => Verdict::Break,
            key => {
                self.store_unknown(to, width(key), &format!("ct key {key} of the connection"));
                Verdict::Continue
            }
        }
    }

    /// `nft_ct_set_eval`, `nft_ct_set_zone_eval`
    pub(super) fn set_ct(&mut self, key: u32, from: u32) -> Verdict {
        let value = self.load_number(from);
        match (&mut self.tracking, key) {
            (Tracking::Unseen | Tracking::Invalid | Tracking::Untracked, key::ZONE) => {
                if let Fact::Known(value) = value {
                    let [a, b, ..] = value.to_ne_bytes();
                    self.tracking = Tracking::Template { zone: u16::from_ne_bytes([a, b]) };
                }
            }
            (Tracking::Tracked(tracked), key::MARK) => {
                if let Fact::Known(value) = value {
                    tracked.entry.mark = value;
                }
            }
            // Labels and event masks decide nothing that is read here.
            _ => {}
        }
        Verdict::Continue
    }

    /// `nft_notrack_eval`: too late once there is a connection.
    pub(in crate::forwarding) fn notrack(&mut self) -> Verdict {
        if matches!(self.tracking, Tracking::Unseen | Tracking::Invalid) {
            self.tracking = Tracking::Untracked;
        }
        Verdict::Continue
    }

    fn store_address(&mut self, to: u32, address: IpAddr) -> Verdict {
        match address {
            IpAddr::V4(address) => self.store_fact(to, Fact::Known(address.octets())),
            IpAddr::V6(address) => self.store_fact(to, Fact::Known(address.octets())),
        }
    }
}

/// Bytes that a key writes.
fn width(key: u32) -> usize {
    match key {
        1 | 7 | 10 => 1,
        11 | 12 | 17 => 2,
        6 | 8 | 9 | 13 | 21 | 22 => 16,
        14..=16 => 8,
        _ => 4,
    }
}
