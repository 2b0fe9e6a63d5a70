//! What a register holds: a field of the packet. Turns "field is in these intervals" into a `Match` and into words.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Match, PortRange};

use super::attribute;
use crate::host::xtables::words;

/// Nets that one interval of addresses may need (a v6 range needs up to 254), times a few intervals. More than this is
/// not worth listing.
const MAX_NETS: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub subject: Subject,
    /// As nft spells it: `ip saddr`, `tcp dport`, `meta mark`.
    pub name: Cow<'static, str>,
    /// Width in a register, and of a full value.
    pub bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Source,
    Destination,
    Protocol,
    SourcePort,
    DestinationPort,
    InputInterface,
    OutputInterface,
    /// By index, in host byte order.
    InputIndex,
    OutputIndex,
    ConntrackState,
    Family,
    /// An Ethernet protocol number, in network byte order.
    EtherType,
    /// An address type (`RTN_*`), in host byte order.
    AddressType,
    /// A number in network byte order.
    Number,
    /// A number in host byte order, spelled in hex: marks and flags.
    Flags,
}

/// All values from `first` to `last`, both included, as register bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interval {
    pub first: Vec<u8>,
    pub last: Vec<u8>,
}

impl Interval {
    pub(super) fn single(value: &[u8]) -> Self {
        Self { first: value.to_vec(), last: value.to_vec() }
    }

    fn is_single(&self) -> bool {
        self.first == self.last
    }
}

/// Index and name of the interfaces of the namespace, for `iif`/`oif`, which rules keep as numbers.
pub(super) type Interfaces = [(u32, String)];

impl Field {
    pub(super) fn new(subject: Subject, name: impl Into<Cow<'static, str>>, bytes: usize) -> Self {
        Self { subject, name: name.into(), bytes }
    }

    /// The match in the contract's terms; none when it has no such term.
    pub(super) fn matching(&self, intervals: &[Interval], negated: bool, interfaces: &Interfaces) -> Option<Match> {
        match self.subject {
            Subject::Source => Some(Match::Source { nets: nets(intervals)?, negated }),
            Subject::Destination => Some(Match::Destination { nets: nets(intervals)?, negated }),
            Subject::Protocol => Some(Match::Protocol { protocols: protocols(intervals)?, negated }),
            Subject::SourcePort => Some(Match::SourcePort { ranges: ports(intervals)?, negated }),
            Subject::DestinationPort => Some(Match::DestinationPort { ranges: ports(intervals)?, negated }),
            Subject::InputInterface => Some(Match::InputInterface { names: names(intervals)?, negated }),
            Subject::OutputInterface => Some(Match::OutputInterface { names: names(intervals)?, negated }),
            Subject::InputIndex => Some(Match::InputInterface { names: indexed(intervals, interfaces)?, negated }),
            Subject::OutputIndex => Some(Match::OutputInterface { names: indexed(intervals, interfaces)?, negated }),
            Subject::ConntrackState => Some(Match::ConntrackState { states: states(intervals)?, negated }),
            Subject::Family | Subject::EtherType => {
                let [one] = intervals else { return None };
                let family = self.family(one)?;
                (!negated).then(|| Match::Family { family: family.into() })
            }
            Subject::AddressType | Subject::Number | Subject::Flags => None,
        }
    }

    /// `ip` or `ip6` when this field and this value say so.
    pub(super) fn family(&self, interval: &Interval) -> Option<&'static str> {
        if !interval.is_single() {
            return None;
        }
        match (self.subject, &interval.first[..]) {
            (Subject::Family, [first, ..]) if i32::from(*first) == libc::NFPROTO_IPV4 => Some("ip"),
            (Subject::Family, [first, ..]) if i32::from(*first) == libc::NFPROTO_IPV6 => Some("ip6"),
            (Subject::EtherType, [0x08, 0x00, ..]) => Some("ip"),
            (Subject::EtherType, [0x86, 0xdd, ..]) => Some("ip6"),
            _ => None,
        }
    }

    /// The intervals as `nft` would print them: one value, or braces around several.
    pub(super) fn values(&self, intervals: &[Interval], interfaces: &Interfaces) -> String {
        words::braced(intervals.len(), intervals.iter().map(|interval| self.value(interval, interfaces)))
    }

    pub(super) fn value(&self, interval: &Interval, interfaces: &Interfaces) -> String {
        if let Some(Match::Source { nets, .. } | Match::Destination { nets, .. }) = self.address_match(interval)
            && let [net] = &nets[..]
        {
            return words::net(*net);
        }
        if let Some(name) = interface_name(interval)
            && matches!(self.subject, Subject::InputInterface | Subject::OutputInterface)
        {
            return format!("\"{name}\"");
        }
        let first = self.spell(&interval.first, interfaces);
        if interval.is_single() { first } else { format!("{first}-{}", self.spell(&interval.last, interfaces)) }
    }

    fn address_match(&self, interval: &Interval) -> Option<Match> {
        let is_address = matches!(self.subject, Subject::Source | Subject::Destination);
        is_address.then(|| self.matching(std::slice::from_ref(interval), false, &[])).flatten()
    }

    fn spell(&self, value: &[u8], interfaces: &Interfaces) -> String {
        match self.subject {
            Subject::Source | Subject::Destination => address(value).map_or_else(|| hex(value), |a| a.to_string()),
            Subject::Protocol => value.first().map_or_else(String::new, |number| words::protocol(*number)),
            Subject::Family | Subject::EtherType => match self.family(&Interval::single(value)) {
                Some("ip6") if self.subject == Subject::Family => "ipv6".into(),
                Some("ip") if self.subject == Subject::Family => "ipv4".into(),
                Some(family) => family.into(),
                None => hex(value),
            },
            Subject::SourcePort | Subject::DestinationPort | Subject::Number => big_endian(value).to_string(),
            Subject::InputInterface | Subject::OutputInterface => format!("\"{}\"", attribute::text(value)),
            Subject::InputIndex | Subject::OutputIndex => {
                let index = host_endian(value);
                let known = interfaces.iter().find(|(known, _)| u64::from(*known) == index);
                known.map_or_else(|| index.to_string(), |(_, name)| format!("\"{name}\""))
            }
            Subject::ConntrackState => state_names(host_endian(value)).map_or_else(|| hex(value), |s| s.join(",")),
            Subject::AddressType => words::address_type(host_endian(value)),
            Subject::Flags => format!("{:#x}", host_endian(value)),
        }
    }
}

/// Bits of `ct state` by name (`NF_CT_STATE_*` and `NF_CT_STATE_BIT()` of nf_conntrack_common.h).
pub(super) fn state_names(bits: u64) -> Option<Vec<String>> {
    let known = [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];
    let all: u64 = known.iter().map(|(bit, _)| bit).sum();
    let named = known.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned());
    (bits != 0 && bits & !all == 0).then(|| named.collect())
}

pub(super) fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

pub(super) fn host_endian(value: &[u8]) -> u64 {
    match *value {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_ne_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_ne_bytes([a, b, c, d])),
        _ => value.get(..8).and_then(|v| v.try_into().ok()).map_or(0, u64::from_ne_bytes),
    }
}

fn big_endian(value: &[u8]) -> u64 {
    value.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn hex(value: &[u8]) -> String {
    use std::fmt::Write;
    value.iter().fold("0x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn nets(intervals: &[Interval]) -> Option<Vec<IpNet>> {
    let mut nets = Vec::new();
    for Interval { first, last } in intervals {
        match (address(first)?, address(last)?) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                nets.extend(Ipv4Subnets::new(first, last, 0).map(IpNet::V4));
            }
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
                nets.extend(Ipv6Subnets::new(first, last, 0).map(IpNet::V6));
            }
            _ => return None,
        }
        if nets.len() > MAX_NETS {
            return None;
        }
    }
    Some(nets)
}

/// Protocols without a name in the contract are left out: no question is ever asked about them.
fn protocols(intervals: &[Interval]) -> Option<Vec<Protocol>> {
    let mut protocols = Vec::new();
    for interval in intervals {
        let (&first, &last) = (interval.first.first()?, interval.last.first()?);
        protocols.extend((first..=last).filter_map(Protocol::from_number));
    }
    Some(protocols)
}

fn ports(intervals: &[Interval]) -> Option<Vec<PortRange>> {
    let port = |value: &[u8]| Some(u16::from_be_bytes(value.try_into().ok()?));
    intervals.iter().map(|i| Some(PortRange { first: port(&i.first)?, last: port(&i.last)? })).collect()
}

fn names(intervals: &[Interval]) -> Option<Vec<String>> {
    intervals.iter().map(interface_name).collect()
}

/// `eth0`, or `eth*` for an interval that holds exactly the names with this prefix.
fn interface_name(interval: &Interval) -> Option<String> {
    if interval.is_single() {
        return Some(attribute::text(&interval.first).into_owned());
    }
    let prefix = attribute::text(&interval.first).into_owned();
    let rest_is_open = interval.last.len() == interval.first.len()
        && interval.last.starts_with(prefix.as_bytes())
        && interval.first[prefix.len()..].iter().all(|byte| *byte == 0)
        && interval.last[prefix.len()..].iter().all(|byte| *byte == 0xff);
    rest_is_open.then(|| prefix + "*")
}

fn indexed(intervals: &[Interval], interfaces: &Interfaces) -> Option<Vec<String>> {
    let name = |interval: &Interval| {
        let index = interval.is_single().then(|| host_endian(&interval.first))?;
        interfaces.iter().find(|(known, _)| u64::from(*known) == index).map(|(_, name)| name.clone())
    };
    intervals.iter().map(name).collect()
}

fn states(intervals: &[Interval]) -> Option<Vec<String>> {
    let mut states = Vec::new();
    for interval in intervals {
        let bits = interval.is_single().then(|| host_endian(&interval.first))?;
        // One state at a time: a packet has exactly one, so a value of two bits would never be equal to it.
        match &state_names(bits)?[..] {
            [state] => states.push(state.clone()),
            _ => return None,
        }
    }
    Some(states)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(first: &[u8], last: &[u8]) -> Interval {
        Interval { first: first.to_vec(), last: last.to_vec() }
    }

    #[test]
    fn an_address_range_becomes_exactly_its_nets() {
        let field = Field::new(Subject::Source, "ip saddr", 4);
        let range = [interval(&[10, 0, 0, 0], &[10, 0, 0, 4])];
        let wanted = vec!["10.0.0.0/30".parse().unwrap(), "10.0.0.4/32".parse().unwrap()];
        assert_eq!(field.matching(&range, true, &[]), Some(Match::Source { nets: wanted, negated: true }));
        assert_eq!(field.values(&range, &[]), "10.0.0.0-10.0.0.4");
    }

    #[test]
    fn an_interface_prefix_is_told_from_a_name() {
        let mut first = b"eth".to_vec();
        first.resize(16, 0);
        let mut last = b"eth".to_vec();
        last.resize(16, 0xff);
        assert_eq!(names(&[interval(&first, &last)]), Some(vec!["eth*".into()]));
        assert_eq!(names(&[Interval::single(&first)]), Some(vec!["eth".into()]));
    }

    #[test]
    fn two_states_in_one_value_are_not_guessed() {
        assert_eq!(states(&[Interval::single(&6u32.to_ne_bytes())]), None);
        assert_eq!(states(&[Interval::single(&2u32.to_ne_bytes())]), Some(vec!["established".into()]));
    }

    #[test]
    fn unknown_interfaces_stay_unknown() {
        let field = Field::new(Subject::InputIndex, "iif", 4);
        assert_eq!(field.matching(&[Interval::single(&7u32.to_ne_bytes())], false, &[(1, "lo".into())]), None);
    }
}
