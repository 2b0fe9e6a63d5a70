//! IPsec policies that a packet matches (`NETLINK_XFRM`): they put it into a tunnel, want it to have come out of one, or
//! block it.

use std::net::IpAddr;

use ipnet::IpNet;
use netdiag_common::forwarding::Packet;

use super::Found;
use crate::host::ReadError;
use crate::host::netlink::{IPV4, IPV6, Netlink, UNSPECIFIED, address, attributes, int, short};

// Of linux/xfrm.h.
const GET_POLICY: u16 = 0x15;
/// Length of `struct xfrm_userpolicy_id`, which a request for all policies carries empty.
const REQUEST_BYTES: usize = 64;
/// Length of `struct xfrm_userpolicy_info`, before its attributes.
const POLICY_BYTES: usize = 168;
/// Length of `struct xfrm_user_tmpl`.
const TEMPLATE_BYTES: usize = 64;
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;

/// `XFRM_POLICY_*`: when the packet is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    /// Delivered here.
    In,
    /// Leaves.
    Out,
    /// Passes through, when it comes in.
    Forward,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    direction: Direction,
    destination: IpNet,
    source: IpNet,
    /// With a mask.
    destination_port: (u16, u16),
    source_port: (u16, u16),
    /// 0 for any.
    protocol: u8,
    /// 0 for any.
    interface: u32,
    mark: (u32, u32),
    /// Lower ones come first.
    priority: u32,
    index: u32,
    blocks: bool,
    /// `esp tunnel 192.0.2.1 → 192.0.2.2`, in the order of application.
    templates: Vec<String>,
}

/// One direction of one path. Translation changes the packet on its way, and the kernel looks policies up with the addresses
/// from before or after: both are asked.
#[derive(Debug, Clone)]
pub(super) struct Question<'a> {
    pub direction: Direction,
    pub packets: [&'a Packet; 2],
    pub output: Option<u32>,
}

/// The policy that each question meets, if it does anything. The list is read once, and not kept.
pub(super) fn met(questions: &[Question<'_>]) -> Result<Vec<Option<Found>>, ReadError> {
    let mut first: Vec<Option<Policy>> = vec![None; questions.len()];
    let mut netlink = match Netlink::open_xfrm() {
        // This kernel has no IPsec.
        Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            return Ok(vec![None; questions.len()]);
        }
        netlink => netlink?,
    };
    netlink.stream(GET_POLICY, &[0; REQUEST_BYTES], "list XFRM policies", |payload| {
        let Some(policy) = parse(payload) else { return };
        for (question, first) in questions.iter().zip(&mut first) {
            if policy.matches(question) && first.as_ref().is_none_or(|before| policy.priority < before.priority) {
                *first = Some(policy.clone());
            }
        }
    })?;
    Ok(first.into_iter().map(|policy| policy.and_then(Policy::found)).collect())
}

impl Policy {
    fn matches(&self, question: &Question<'_>) -> bool {
        let [before, after] = question.packets;
        let holds = |net: &IpNet, of: fn(&Packet) -> IpAddr| net.contains(&of(before)) || net.contains(&of(after));
        let port = |(port, mask): (u16, u16), of: fn(&Packet) -> Option<u16>| {
            mask == 0 || [before, after].iter().any(|packet| of(packet).is_none_or(|own| own & mask == port & mask))
        };
        let protocol = after.transport().map_or(0, |transport| transport.protocol);
        let (mark, mask) = self.mark;
        self.direction == question.direction
            && holds(&self.destination, Packet::destination)
            && holds(&self.source, Packet::source)
            && port(self.destination_port, |packet| packet.known_ports().1)
            && port(self.source_port, |packet| packet.known_ports().0)
            && (self.protocol == 0 || self.protocol == protocol)
            && (self.interface == 0 || question.output.is_none_or(|output| output == self.interface))
            && after.mark.known().is_none_or(|own| own & mask == mark)
    }

    /// None for one that lets pass what it matches.
    fn found(self) -> Option<Found> {
        let Self { direction, source, destination, priority, index, blocks, templates, .. } = self;
        if !blocks && templates.is_empty() {
            return None;
        }
        let direction = match direction {
            Direction::In => "in",
            Direction::Out => "out",
            Direction::Forward => "fwd",
        };
        let does = if blocks { "block".to_owned() } else { templates.join(", ") };
        let effect = if blocks {
            "such a policy drops what it matches"
        } else {
            "the packet is sent in, or has to have come out of, what the policy names"
        };
        Some(Found {
            what: format!(
                "XFRM policy {direction} src {source} dst {destination} ({does}; priority {priority}, index {index})"
            ),
            why: format!("IPsec is not evaluated: {effect}"),
            remedy: "`ip xfrm policy`, `ip -s xfrm state` and /proc/net/xfrm_stat on that node show policy, states and errors"
                .to_owned(),
        })
    }
}

/// `struct xfrm_userpolicy_info` and its attributes. None for policies of the kernel's own sockets, of interfaces of type
/// xfrm, and of families that are not IP.
fn parse(payload: &[u8]) -> Option<Policy> {
    let (fixed, rest) = payload.split_at_checked(POLICY_BYTES)?;
    let big_endian = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let family = short(fixed, 40)?;
    let net = |at: usize, bits: u8| {
        let bytes = if family == u16::from(IPV4) { 4 } else { 16 };
        IpNet::new(address(&fixed[at..at + bytes])?, bits).ok()
    };
    if ![IPV4, IPV6, UNSPECIFIED].map(u16::from).contains(&family) {
        return None;
    }
    let mut policy = Policy {
        direction: match fixed[160] {
            0 => Direction::In,
            1 => Direction::Out,
            2 => Direction::Forward,
            _ => return None,
        },
        destination: net(0, fixed[42])?,
        source: net(16, fixed[43])?,
        destination_port: (big_endian(32), big_endian(34)),
        source_port: (big_endian(36), big_endian(38)),
        protocol: fixed[44],
        interface: int(fixed, 48)?,
        mark: (0, 0),
        priority: int(fixed, 152)?,
        index: int(fixed, 156)?,
        blocks: fixed[161] != 0,
        templates: Vec::new(),
    };
    for (kind, value) in attributes(rest) {
        match kind {
            XFRMA_TMPL => policy.templates = value.chunks_exact(TEMPLATE_BYTES).filter_map(template).collect(),
            XFRMA_MARK => policy.mark = (int(value, 0)?, int(value, 4)?),
            XFRMA_IF_ID if int(value, 0) != Some(0) => return None,
            _ => {}
        }
    }
    Some(policy)
}

fn template(bytes: &[u8]) -> Option<String> {
    let protocol = match *bytes.get(20)? {
        50 => "esp".to_owned(),
        51 => "ah".to_owned(),
        108 => "comp".to_owned(),
        other => format!("protocol {other}"),
    };
    let length = if short(bytes, 24)? == u16::from(IPV4) { 4 } else { 16 };
    let ends = || Some((address(bytes.get(28..28 + length)?)?, address(bytes.get(..length)?)?));
    Some(match *bytes.get(48)? {
        0 => format!("{protocol} transport"),
        1 => {
            let (from, to) = ends()?;
            format!("{protocol} tunnel {from} → {to}")
        }
        mode => format!("{protocol} mode {mode}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_policy_or_none(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = parse(&bytes);
        }
    }
}
