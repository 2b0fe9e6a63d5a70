//! Reading the table of the calling thread's namespace: entry by entry, never as a whole.
//!
//! The kernel walks its one hash table for all namespaces and copies what fits into a datagram; nothing is locked between two
//! of them. It can leave out entries before they are copied: by family since ever, by addresses and protocol of either
//! direction since Linux 5.8 (`CTA_FILTER`). Older kernels ignore the filter, so every entry is compared here as well.
//!
//! IPv6 addresses are compared here only: of them the kernel leaves out exactly the entries that were asked for
//! (`ctnetlink_filter_match_tuple` takes what `ipv6_addr_cmp` returns for equal addresses for a difference, Linux 6.18).

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use netdiag_common::observation::Protocol;
use netdiag_common::observation::flow::{Flow, FlowQuery, FoundFlows, MAX_FOUND_FLOWS};
use nix::sys::socket::SockProtocol;

use super::entry::{
    Entry, PROTO_NUMBER, TUPLE_IP, TUPLE_ORIGINAL, TUPLE_PROTO, TUPLE_REPLY, V4_DESTINATION, V4_SOURCE, parse,
};
use super::timeout::Timeouts;
use crate::host::ReadError;
use crate::host::netlink::{Ended, IPV4, IPV6, Netlink, UNSPECIFIED, attribute};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`
pub(super) const GET: u16 = 1 << 8 | 1;
const STEP: &str = "list tracked flows";

/// A pass is repeated when the kernel says that it was interrupted, but not for ever.
const TRIES: usize = 3;
/// A million entries take about two seconds; what takes longer than this is no table that one answer can wait for.
pub(crate) const PASS_LIMIT: Duration = Duration::from_secs(10);
/// The clock is looked at once per this many entries.
const ENTRIES_PER_LOOK: u64 = 4096;

// `enum ctattr_filter` and `CTA_FILTER_F_*` (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`,
// `net/netfilter/nf_internals.h`).
const FILTER: u16 = 25;
const FILTER_ORIGINAL_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
const BY_SOURCE: u32 = 1 << 0;
const BY_DESTINATION: u32 = 1 << 1;
const BY_PROTOCOL: u32 = 1 << 3;
/// `NLA_F_NESTED`
pub(super) const NESTED: u16 = 0x8000;

/// What takes the entries in.
pub(crate) trait Count {
    /// A pass begins, maybe not the first: what the one before counted is void.
    fn restart(&mut self);
    fn entry(&mut self, entry: &Entry);
    /// A message that could not be decoded.
    fn undecoded(&mut self);
}

/// Which entries the kernel is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    original_source: Option<IpAddr>,
    original_destination: Option<IpAddr>,
    reply_source: Option<IpAddr>,
    protocol: Option<Protocol>,
    /// Entries of IPv6 only, also when none of the addresses above says so.
    is_ipv6: bool,
}

/// Reads the table into `count`. Returns what makes the pass less than the table; none when nothing does.
pub(crate) fn pass(
    open: &mut dyn FnMut() -> Result<Netlink, ReadError>,
    filter: &Filter,
    count: &mut dyn Count,
) -> Result<Vec<String>, ReadError> {
    let request = filter.request();
    for tries_left in (0..TRIES).rev() {
        count.restart();
        let started = Instant::now();
        let mut entries = 0u64;
        let ended = open()?.walk(GET, &request, STEP, &mut |payload| {
            match parse(payload) {
                Some(entry) => count.entry(&entry),
                None => count.undecoded(),
            }
            entries += 1;
            let late = entries.is_multiple_of(ENTRIES_PER_LOOK) && started.elapsed() > PASS_LIMIT;
            if late { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        match ended {
            Ended::Complete => return Ok(Vec::new()),
            Ended::Stopped => {
                return Ok(vec![format!("reading stopped after {} s and {entries} entries", PASS_LIMIT.as_secs())]);
            }
            Ended::Interrupted if tries_left > 0 => {}
            Ended::Interrupted => break,
        }
    }
    Ok(vec![format!("the table changed during each of {TRIES} passes: entries may be missing or double")])
}

pub(crate) fn open() -> Result<Netlink, ReadError> {
    Netlink::open(SockProtocol::NetlinkNetFilter)
}

/// Entries of the calling thread's namespace that match.
pub(crate) fn find(query: &FlowQuery, timeouts: &Timeouts) -> Result<FoundFlows, ReadError> {
    let mut all = FoundFlows { flows: Vec::new(), omitted: 0, limits: Vec::new() };
    for filter in filters(query) {
        let mut finding = Finding { query, timeouts, filter: &filter, flows: Vec::new(), omitted: 0, undecoded: 0 };
        all.limits.extend(pass(&mut open, &filter, &mut finding)?);
        if finding.undecoded > 0 {
            all.limits.push(format!("{} entries could not be decoded", finding.undecoded));
        }
        let room = MAX_FOUND_FLOWS - all.flows.len();
        all.omitted += finding.omitted + finding.flows.len().saturating_sub(room) as u64;
        all.flows.extend(finding.flows.into_iter().take(room));
    }
    Ok(all)
}

/// The passes that a query needs: the kernel cannot look for either of two addresses at once.
fn filters(query: &FlowQuery) -> Vec<Filter> {
    let common = Filter { original_source: query.client, protocol: query.protocol, ..Filter::default() };
    match query.server {
        // The kernel does not compare it, so one pass sees the entries of both kinds.
        Some(IpAddr::V6(_)) => vec![Filter { is_ipv6: true, ..common }],
        Some(server) => vec![
            Filter { original_destination: Some(server), ..common.clone() },
            Filter { reply_source: Some(server), ..common },
        ],
        None => vec![common],
    }
}

struct Finding<'a> {
    query: &'a FlowQuery,
    timeouts: &'a Timeouts,
    filter: &'a Filter,
    flows: Vec<Flow>,
    omitted: u64,
    undecoded: u64,
}

impl Count for Finding<'_> {
    fn restart(&mut self) {
        self.flows.clear();
        (self.omitted, self.undecoded) = (0, 0);
    }

    fn entry(&mut self, entry: &Entry) {
        if !self.filter.admits(entry) || !self.query.matches(entry.protocol, &entry.original, &entry.reply) {
            return;
        }
        if self.flows.len() < MAX_FOUND_FLOWS {
            self.flows.push(entry.to_flow(self.timeouts.latest_packet_s(entry)));
        } else {
            self.omitted += 1;
        }
    }

    fn undecoded(&mut self) {
        self.undecoded += 1;
    }
}

impl Filter {
    /// Whether this pass takes the entry. What goes where it was meant to go is found by both addresses, and taken once.
    fn admits(&self, entry: &Entry) -> bool {
        let original = self.original_destination.is_none_or(|wanted| wanted == entry.original.destination);
        let reply =
            self.reply_source.is_none_or(|wanted| wanted == entry.reply.source && wanted != entry.original.destination);
        original && reply
    }

    /// `struct nfgenmsg` and attributes. The kernel compares a tuple's part when its flag is set.
    fn request(&self) -> Vec<u8> {
        let any = self.original_source.or(self.original_destination).or(self.reply_source);
        let family = match any {
            Some(IpAddr::V4(_)) => IPV4,
            Some(IpAddr::V6(_)) => IPV6,
            None if self.is_ipv6 => IPV6,
            None => UNSPECIFIED,
        };
        let mut bytes = vec![family, 0, 0, 0];
        // A tuple cannot be parsed without a family: then only this side compares.
        if family == UNSPECIFIED {
            return bytes;
        }
        let original = tuple(self.original_source, self.original_destination, self.protocol);
        let reply = tuple(self.reply_source, None, None);
        let mut flags = Vec::new();
        for (part, flags_kind, tuple_kind) in
            [(&original, FILTER_ORIGINAL_FLAGS, TUPLE_ORIGINAL), (&reply, FILTER_REPLY_FLAGS, TUPLE_REPLY)]
        {
            // The kernel wants both flags, and a tuple for those that are not 0.
            flags.extend(attribute(flags_kind, &part.0.to_ne_bytes()));
            if part.0 != 0 {
                bytes.extend(attribute(tuple_kind | NESTED, &part.1));
            }
        }
        bytes.extend(attribute(FILTER | NESTED, &flags));
        bytes
    }
}

/// Flags of what to compare, and the tuple to compare with.
fn tuple(source: Option<IpAddr>, destination: Option<IpAddr>, protocol: Option<Protocol>) -> (u32, Vec<u8>) {
    let mut flags = 0;
    let mut ip = Vec::new();
    for (address, flag, kind) in [(source, BY_SOURCE, V4_SOURCE), (destination, BY_DESTINATION, V4_DESTINATION)] {
        if let Some(IpAddr::V4(address)) = address {
            flags |= flag;
            ip.extend(attribute(kind, &address.octets()));
        }
    }
    let mut bytes = if ip.is_empty() { Vec::new() } else { attribute(TUPLE_IP | NESTED, &ip) };
    if let Some(protocol) = protocol {
        flags |= BY_PROTOCOL;
        bytes.extend(attribute(TUPLE_PROTO | NESTED, &attribute(PROTO_NUMBER, &[protocol.number()])));
    }
    (flags, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::conntrack::recorded;
    use crate::host::netlink::playback;

    /// Keeps everything.
    #[derive(Default)]
    struct Kept {
        entries: Vec<Entry>,
        undecoded: u64,
        passes: usize,
    }

    impl Count for Kept {
        fn restart(&mut self) {
            (self.entries, self.undecoded, self.passes) = (Vec::new(), 0, self.passes + 1);
        }

        fn entry(&mut self, entry: &Entry) {
            self.entries.push(*entry);
        }

        fn undecoded(&mut self) {
            self.undecoded += 1;
        }
    }

    /// The recorded dump; interrupted when told.
    fn datagrams(interrupted: bool) -> Vec<Vec<u8>> {
        let mut found = recorded::dump_datagrams();
        if interrupted {
            // `NLM_F_DUMP_INTR` in the flags of the first message.
            found[0][6] |= 0x10;
        }
        found
    }

    fn read(answers: &[bool]) -> (Kept, Vec<String>) {
        let mut answers = answers.iter();
        let mut kept = Kept::default();
        let mut open = || Ok(playback::netlink(vec![datagrams(*answers.next().unwrap())]));
        let limits = pass(&mut open, &Filter::default(), &mut kept).unwrap();
        (kept, limits)
    }

    #[test]
    fn an_interrupted_pass_is_repeated_and_counts_once() {
        let (kept, limits) = read(&[true, true, false]);
        assert_eq!((kept.passes, kept.entries.len()), (3, recorded::dump().len()));
        assert!(limits.is_empty());
    }

    #[test]
    fn a_table_that_never_holds_still_is_told() {
        let (kept, limits) = read(&[true, true, true]);
        assert_eq!(kept.entries.len(), recorded::dump().len(), "what was seen is still given");
        assert_eq!(limits, ["the table changed during each of 3 passes: entries may be missing or double"]);
    }

    #[test]
    fn messages_without_tuples_are_counted() {
        let mut kept = Kept::default();
        let answer = vec![playback::message(16, 0, [2, 0, 0, 0]).to_vec(), playback::DONE.to_vec()];
        let mut open = || Ok(playback::netlink(vec![answer.clone()]));
        pass(&mut open, &Filter::default(), &mut kept).unwrap();
        assert_eq!((kept.entries.len(), kept.undecoded), (0, 1));
    }

    #[test]
    fn both_passes_of_a_query_take_an_entry_once() {
        let address = |text: &str| text.parse().unwrap();
        let query = FlowQuery { server: Some(address("10.2.0.2")), ..FlowQuery::default() };
        let filters = filters(&query);
        let taken = |entry: &Entry| filters.iter().filter(|filter| filter.admits(entry)).count();
        let entries: Vec<Entry> = recorded::dump().iter().filter_map(|payload| parse(payload)).collect();
        let direct = entries.iter().find(|e| e.original.destination_port == 9999).unwrap();
        let translated = entries.iter().find(|e| e.original.destination_port == 80).unwrap();
        assert_eq!((taken(direct), taken(translated)), (1, 1));
        assert_eq!(taken(entries.iter().find(|e| e.original.source.is_ipv6()).unwrap()), 0);
    }

    #[test]
    fn addresses_of_ipv6_are_not_left_to_the_kernel() {
        let address = |text: &str| text.parse().unwrap();
        let query = FlowQuery {
            client: Some(address("fd00:1::2")),
            server: Some(address("fd00:2::2")),
            ..FlowQuery::default()
        };
        let [filter] = &filters(&query)[..] else { panic!("one pass") };
        let flags = [attribute(FILTER_ORIGINAL_FLAGS, &[0; 4]), attribute(FILTER_REPLY_FLAGS, &[0; 4])].concat();
        assert_eq!(filter.request(), [vec![IPV6, 0, 0, 0], attribute(FILTER | NESTED, &flags)].concat());
        let entries: Vec<Entry> = recorded::dump().iter().filter_map(|payload| parse(payload)).collect();
        assert!(filter.admits(entries.iter().find(|e| e.original.source.is_ipv6()).unwrap()));
    }

    #[test]
    fn a_query_without_addresses_asks_for_everything() {
        let query = FlowQuery { protocol: Some(Protocol::Udp), ..FlowQuery::default() };
        assert_eq!(filters(&query)[0].request(), [0; 4]);
    }
}
