//! What the kernel says of traced packets: `NFT_MSG_TRACE` (`nft_trace_notify`, Linux 4.6).

use netdiag_common::forwarding::conntrack::{Direction, Tuple};
use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::packet::{Origin, Packet, Protocol, TCP, UDP};
use netdiag_common::observation::trace::{TraceConnection, TraceEvent, TraceKind};

use crate::host::netlink::messages;
use crate::host::nftables::attribute::Attributes;
use crate::host::nftables::{family_of, verdict_of};

/// Subsystem 10 (`NFNL_SUBSYS_NFTABLES`), `NFT_MSG_TRACE` (17).
const TRACE: u16 = 0x0a11;

/// `struct nfgenmsg`
const GENERIC_BYTES: usize = 4;

/// `enum nft_trace_types`
const POLICY: u32 = 1;
const RETURN: u32 = 2;
const RULE: u32 = 3;

/// One event, with the number of its packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// `NFTA_TRACE_ID`
    pub id: u32,
    /// Without hook and priority, which no message has.
    pub event: TraceEvent,
}

/// The events of one datagram; none in place of each that is not understood.
pub fn events(datagram: &[u8]) -> impl Iterator<Item = Option<Traced>> {
    messages(datagram).filter(|(kind, _)| *kind == TRACE).map(|(_, payload)| event(payload))
}

fn event(payload: &[u8]) -> Option<Traced> {
    let family = family_of(*payload.first()?)?;
    let of = Attributes(payload.get(GENERIC_BYTES..)?);
    let (table, chain, handle, kind, verdict, id) = (1, 2, 3, 4, 5, 6);
    let (input, output, mark, policy) = (10, 12, 14, 16);
    let (kind, verdict) = match of.u32(kind)? {
        POLICY => (TraceKind::Policy, if of.u32(policy)? == 0 { Verdict::Drop } else { Verdict::Accept }),
        RULE => (TraceKind::Rule, verdict_of(Attributes(of.find(verdict)?))?),
        RETURN => (TraceKind::Return, verdict_of(Attributes(of.find(verdict)?))?),
        _ => return None,
    };
    let event = TraceEvent {
        family,
        table: of.text(table)?.into_owned(),
        chain: of.text(chain)?.into_owned(),
        kind,
        hook: None,
        priority: None,
        handle: of.u64(handle),
        verdict,
        mark: of.u32(mark).unwrap_or(0),
        input: of.u32(input),
        output: of.u32(output),
        headers: headers(of),
        connection: connection(of),
    };
    Some(Traced { id: of.u32(id)?, event })
}

/// Addresses and ports as the packet has them now. Both headers are cut to what the kernel copies: 40 and 20 bytes.
fn headers(of: Attributes<'_>) -> Option<Tuple> {
    let (network, transport) = (8, 9);
    let network = of.find(network)?;
    let version = match network.first()? >> 4 {
        4 => Protocol::Ipv4,
        6 => Protocol::Ipv6,
        _ => return None,
    };
    let packet = Packet::new(version, Origin::Sent, network.to_vec());
    let protocol = *network.get(if version == Protocol::Ipv4 { 9 } else { 6 })?;
    let number = |at: usize| {
        let bytes = of.find(transport)?.get(at..at + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let (source_port, destination_port) = match protocol {
        // As tuples of connection tracking have it: the identifier, then type and code.
        1 | 58 => (number(4), number(0)),
        TCP | UDP | 132 => (number(0), number(2)),
        _ => (None, None),
    };
    Some(Tuple {
        source: packet.source(),
        destination: packet.destination(),
        protocol,
        source_port: source_port.unwrap_or(0),
        destination_port: destination_port.unwrap_or(0),
    })
}

/// `nf_trace_fill_ct_info` (Linux 6.16). A status of zero is left out.
fn connection(of: Attributes<'_>) -> Option<TraceConnection> {
    let (id, direction, status, state) = (18, 19, 20, 21);
    let state = of.u32(state)?;
    let direction = of.find(direction).and_then(|value| value.first()).map(|value| match value {
        0 => Direction::Original,
        _ => Direction::Reply,
    });
    Some(TraceConnection { id: of.u32(id), direction, status: of.u32(status).unwrap_or(0), state })
}

#[cfg(test)]
mod tests {
    use netdiag_common::forwarding::state::Family;
    use proptest::prelude::*;

    use super::*;
    use crate::host::nftables::attribute::push;

    /// A message as Linux 6.18 sends it, of a rule that jumps.
    fn message() -> Vec<u8> {
        let mut verdict = Vec::new();
        push(&mut verdict, 1, &(-3_i32).to_be_bytes());
        push(&mut verdict, 2, b"other\0");
        let ends = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let header = netdiag_common::forwarding::packet::udp(1000, 53, b"");
        let packet = Packet::between(Origin::Sent, ends.0, ends.1, UDP, &header).unwrap();
        let mut body = vec![2, 0, 0, 0];
        push(&mut body, 6, &7_u32.to_be_bytes());
        push(&mut body, 1, b"t\0");
        push(&mut body, 2, b"c\0");
        push(&mut body, 3, &5_u64.to_be_bytes());
        push(&mut body, 4, &RULE.to_be_bytes());
        push(&mut body, 5 | 0x8000, &verdict);
        push(&mut body, 8, &packet.bytes[..20]);
        push(&mut body, 9, &packet.bytes[20..]);
        push(&mut body, 10, &3_u32.to_be_bytes());
        push(&mut body, 21, &8_u32.to_be_bytes());
        let mut message = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        message.extend(TRACE.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    #[test]
    fn an_event_is_read_with_its_headers() {
        let found: Vec<_> = events(&message()).collect();
        let [Some(Traced { id: 7, event })] = &found[..] else { panic!("{found:?}") };
        assert_eq!((event.family, &*event.table, &*event.chain, event.handle), (Family::Ip, "t", "c", Some(5)));
        assert_eq!(event.verdict, Verdict::Jump("other".into()));
        let headers = event.headers.as_ref().unwrap();
        assert_eq!((headers.source.to_string(), headers.destination_port), ("10.0.0.1".to_owned(), 53));
        assert_eq!(event.connection.unwrap().state, 8);
        assert_eq!(event.input, Some(3));
    }

    #[test]
    fn an_event_without_a_verdict_is_not_understood() {
        let mut message = message();
        // The type of attribute 5.
        let at = message.windows(2).position(|pair| pair == (5_u16 | 0x8000).to_ne_bytes()).unwrap();
        message[at] = 99;
        assert_eq!(events(&message).collect::<Vec<_>>(), [None]);
    }

    proptest! {
        #[test]
        fn damaged_events_never_panic(
            at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut message = message();
            for (at, byte) in at {
                let at = at.index(message.len());
                message[at] = byte;
            }
            message.truncate(cut.index(message.len()) + 1);
            prop_assert!(events(&message).count() <= 1);
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut message = u32::try_from(16 + bytes.len()).unwrap().to_ne_bytes().to_vec();
            message.extend(TRACE.to_ne_bytes());
            message.extend([0; 10]);
            message.extend(bytes);
            prop_assert!(events(&message).count() <= 1);
        }
    }
}
