//! One entry as ctnetlink writes it (`ctnetlink_fill_info`, `net/netfilter/nf_conntrack_netlink.c`): in dumps, and in the
//! announcements of new and ended flows. Numbers are in network byte order.

use netdiag_common::observation::Protocol;
use netdiag_common::observation::flow::{Flow, FlowTuple};
use std::borrow::Cow;

use crate::host::netlink::{address, attributes};

/// Length of `struct nfgenmsg`, before the attributes.
pub(super) const GENERIC_HEADER_BYTES: usize = 4;

// `enum ctattr_type`
pub(super) const TUPLE_ORIGINAL: u16 = 1;
pub(super) const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const TIMEOUT: u16 = 7;
const MARK: u16 = 8;
const ZONE: u16 = 18;
// `enum ctattr_tuple`
pub(super) const TUPLE_IP: u16 = 1;
pub(super) const TUPLE_PROTO: u16 = 2;
const TUPLE_ZONE: u16 = 3;
// `enum ctattr_ip`
pub(super) const V4_SOURCE: u16 = 1;
pub(super) const V4_DESTINATION: u16 = 2;
pub(super) const V6_SOURCE: u16 = 3;
pub(super) const V6_DESTINATION: u16 = 4;
// `enum ctattr_l4proto`
pub(super) const PROTO_NUMBER: u16 = 1;
pub(super) const SOURCE_PORT: u16 = 2;
pub(super) const DESTINATION_PORT: u16 = 3;
// `enum ctattr_protoinfo` and the state in each
const PROTOINFO_TCP: u16 = 1;
const PROTOINFO_SCTP: u16 = 3;
const PROTOINFO_STATE: u16 = 1;
// `enum ctattr_protoinfo_tcp`: a `struct nf_ct_tcp_flags` each
const TCP_FLAGS_ORIGINAL: u16 = 4;
const TCP_FLAGS_REPLY: u16 = 5;
/// `IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED` (`include/uapi/linux/netfilter/nf_conntrack_tcp.h`)
const DATA_UNACKNOWLEDGED: u8 = 0x10;

/// `enum ip_conntrack_status`
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const DESTINATION_REWRITTEN: u32 = 1 << 5;
const OFFLOADED: u32 = 1 << 14 | 1 << 15;

/// `enum tcp_conntrack` (`include/uapi/linux/netfilter/nf_conntrack_tcp.h`), without its prefix.
const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];
/// `enum sctp_conntrack` (`include/uapi/linux/netfilter/nf_conntrack_sctp.h`), without its prefix.
const SCTP_STATES: [&str; 9] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
];

/// An entry while it is counted: nothing in it is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub protocol: u8,
    pub original: FlowTuple,
    pub reply: FlowTuple,
    pub status: u32,
    /// The protocol's own number for the state; see [`state_name`].
    pub state: Option<u8>,
    /// TCP: when the latest packet had passed, data of one side waited for the other's acknowledgement.
    pub unacknowledged: bool,
    pub expires_s: Option<u32>,
    pub zone: u16,
    pub mark: u32,
}

/// None when a tuple is missing or is not one of IPv4 or IPv6: the kernel always writes both.
pub(crate) fn parse(payload: &[u8]) -> Option<Entry> {
    let (mut original, mut reply) = (None, None);
    let (mut status, mut protocol_info, mut expires_s, mut zone, mut mark) = (0, None, None, None, 0);
    for (kind, value) in attributes(payload.get(GENERIC_HEADER_BYTES..)?) {
        match kind {
            TUPLE_ORIGINAL => original = Some(parse_tuple(value)?),
            TUPLE_REPLY => reply = Some(parse_tuple(value)?),
            STATUS => status = number(value)?,
            PROTOINFO => protocol_info = parse_protocol_info(value),
            TIMEOUT => expires_s = Some(number(value)?),
            MARK => mark = number(value)?,
            ZONE => zone = Some(port(value)?),
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    let (state, unacknowledged) = protocol_info.unzip();
    Some(Entry {
        protocol: original.protocol,
        original: original.ends,
        reply: reply.ends,
        status,
        state,
        unacknowledged: unacknowledged.unwrap_or_default(),
        expires_s,
        // The zone of both directions, or else of the first packet's only (`nft … ct original zone set`).
        zone: zone.or(original.zone).unwrap_or(0),
        mark,
    })
}

struct Tuple {
    protocol: u8,
    ends: FlowTuple,
    zone: Option<u16>,
}

fn parse_tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination, mut protocol, mut zone) = (None, None, None, None);
    let (mut source_port, mut destination_port) = (0, 0);
    for (kind, value) in attributes(bytes) {
        match kind {
            TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        V4_SOURCE | V6_SOURCE => source = address(value),
                        V4_DESTINATION | V6_DESTINATION => destination = address(value),
                        _ => {}
                    }
                }
            }
            TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        PROTO_NUMBER => protocol = value.first().copied(),
                        SOURCE_PORT => source_port = port(value)?,
                        DESTINATION_PORT => destination_port = port(value)?,
                        _ => {}
                    }
                }
            }
            TUPLE_ZONE => zone = Some(port(value)?),
            _ => {}
        }
    }
    let ends = FlowTuple { source: source?, destination: destination?, source_port, destination_port };
    Some(Tuple { protocol: protocol?, ends, zone })
}

/// The state, and whether data of TCP is unacknowledged (`tcp_to_nlattr`, `net/netfilter/nf_conntrack_proto_tcp.c`).
fn parse_protocol_info(bytes: &[u8]) -> Option<(u8, bool)> {
    let (protocol, inside) = attributes(bytes).find(|(kind, _)| matches!(*kind, PROTOINFO_TCP | PROTOINFO_SCTP))?;
    let (_, state) = attributes(inside).find(|(kind, _)| *kind == PROTOINFO_STATE)?;
    let is_waiting = |(kind, flags): (u16, &[u8])| {
        matches!(kind, TCP_FLAGS_ORIGINAL | TCP_FLAGS_REPLY)
            && flags.first().is_some_and(|flags| flags & DATA_UNACKNOWLEDGED != 0)
    };
    let unacknowledged = protocol == PROTOINFO_TCP && attributes(inside).any(is_waiting);
    Some((*state.first()?, unacknowledged))
}

/// The kernel's word for a state, or its number when it is newer than this table.
pub(crate) fn state_name(protocol: u8, state: u8) -> Cow<'static, str> {
    let names: &[&str] = match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) => &TCP_STATES,
        Some(Protocol::Sctp) => &SCTP_STATES,
        _ => &[],
    };
    names.get(usize::from(state)).map_or_else(|| Cow::Owned(format!("STATE_{state}")), |name| Cow::Borrowed(*name))
}

impl Entry {
    pub fn is_replied(&self) -> bool {
        self.status & SEEN_REPLY != 0
    }

    pub fn is_assured(&self) -> bool {
        self.status & ASSURED != 0
    }

    pub fn is_destination_rewritten(&self) -> bool {
        self.status & DESTINATION_REWRITTEN != 0
    }

    pub fn is_offloaded(&self) -> bool {
        self.status & OFFLOADED != 0
    }

    pub fn to_flow(self, latest_packet_s: Option<u32>) -> Flow {
        Flow {
            protocol_number: self.protocol,
            original: self.original,
            reply: self.reply,
            status: self.status,
            state: self.state.map(|state| state_name(self.protocol, state).into_owned()),
            expires_s: self.expires_s,
            latest_packet_s,
            unacknowledged: self.unacknowledged,
            zone: self.zone,
            mark: self.mark,
        }
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::conntrack::recorded;
    use crate::host::netlink::attribute;

    #[test]
    fn translated_entry_shows_both_directions() {
        let entries: Vec<Entry> = recorded::dump().iter().filter_map(|payload| parse(payload)).collect();
        assert_eq!(entries.len(), recorded::dump().len(), "every recorded entry is decoded");
        let service = entries.iter().find(|e| e.protocol == 6 && e.original.destination_port == 80).unwrap();
        assert_eq!(service.original.destination.to_string(), "10.96.0.50");
        assert_eq!((service.reply.source.to_string().as_str(), service.reply.source_port), ("10.2.0.2", 8080));
        assert!(service.is_destination_rewritten() && service.is_replied() && service.is_assured());
        assert_eq!(state_name(6, service.state.unwrap()), "ESTABLISHED");
        let silent = entries.iter().find(|e| e.protocol == 17 && !e.is_replied()).unwrap();
        assert_eq!(silent.original.destination_port, 5353);
        assert!(silent.expires_s.is_some() && silent.state.is_none());
        let six = entries.iter().find(|e| e.original.source.is_ipv6()).unwrap();
        assert_eq!(six.original.destination.to_string(), "fd00:2::2");
        let echo = entries.iter().find(|e| e.protocol == 1).unwrap();
        assert_eq!((echo.original.source_port, echo.original.destination_port), (0, 0));
        let zoned = entries.iter().find(|e| e.zone == 7).unwrap();
        assert_eq!((zoned.protocol, zoned.mark), (17, 0x2a));
    }

    #[test]
    fn unacknowledged_data_of_either_side_is_told() {
        let parsed = |protocol: u16, original: u8, reply: u8| {
            let state = attribute(PROTOINFO_STATE, &[3]);
            let original = attribute(TCP_FLAGS_ORIGINAL, &[original, 0]);
            let reply = attribute(TCP_FLAGS_REPLY, &[reply, 0]);
            parse_protocol_info(&attribute(protocol, &[state, original, reply].concat()))
        };
        // Window scaling, selective acknowledgements and `IP_CT_TCP_FLAG_MAXACK_SET` are besides.
        assert_eq!(parsed(PROTOINFO_TCP, 0x23, 0x23), Some((3, false)));
        assert_eq!(parsed(PROTOINFO_TCP, 0x33, 0x23), Some((3, true)));
        assert_eq!(parsed(PROTOINFO_TCP, 0x23, 0x33), Some((3, true)));
        assert_eq!(parsed(PROTOINFO_SCTP, 0x33, 0x33), Some((3, false)), "these are others there");
    }

    #[test]
    fn newer_state_keeps_its_number() {
        assert_eq!(state_name(6, 99), "STATE_99");
        assert_eq!(state_name(132, 4), "ESTABLISHED");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_damaged_entry_is_decoded_or_left_out(
            which in 0usize..100,
            at in 0usize..400,
            value in proptest::num::u8::ANY,
            cut in 0usize..400,
        ) {
            let dump = recorded::dump();
            let mut payload = dump[which % dump.len()].clone();
            let length = payload.len();
            payload[at % length] = value;
            payload.truncate(cut % (length + 1));
            if let Some(entry) = parse(&payload) {
                let _ = entry.to_flow(None);
            }
        }
    }
}
