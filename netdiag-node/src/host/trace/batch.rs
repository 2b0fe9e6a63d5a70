//! The table that arms a trace, as one transaction of nf_tables.
//!
//! ```text
//! table ip netdiag-trace {
//!     flags owner                         it goes with the socket that made it (Linux 5.12)
//!     counter matched {}
//!     limit packets { rate 1/week burst N packets }
//!     chain original-in { type filter hook prerouting priority -350; policy accept;
//!         TUPLE counter name matched limit name packets meta nftrace set 1 }
//!     chain original-out { the same at output }
//! }
//! ```
//!
//! The limit is one object for all rules, so that the kernel itself marks no more than N packets, whatever comes. The
//! priority is below that of raw tables (-300), whose decisions are to be traced too, and above that of the kernel's
//! defragmentation (-400), before which later fragments have no ports. Chains below -350 are not seen.

use netdiag_common::forwarding::conntrack::Direction;
use netdiag_common::forwarding::packet::octets;
use netdiag_common::forwarding::state::Family;
use netdiag_common::observation::trace::{TraceRequest, TraceTuple};

use crate::host::nftables::attribute::push;

pub(in crate::host) const TABLE: &str = "netdiag-trace";
pub(super) const PRIORITY: i32 = -350;

/// `NFT_TABLE_F_OWNER`
pub(super) const OWNER: u32 = 0x2;

/// Names of the objects.
pub(super) const MATCHED: &str = "matched";
const PACKETS: &str = "packets";

/// `NFT_OBJECT_COUNTER`, `NFT_OBJECT_LIMIT`
pub(super) const COUNTER: u32 = 1;
const LIMIT: u32 = 4;

/// Seconds of the limit's unit, a week: longer than any trace, and with 64 packets in nanoseconds still below 2^64.
const WEEK: u64 = 604_800;

const NESTED: u16 = 0x8000;
/// `NLM_F_REQUEST | NLM_F_ACK`, and with `NLM_F_CREATE | NLM_F_EXCL`.
const PLAIN: u16 = 0x005;
const CREATE: u16 = 0x605;

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`
const BEGIN: u16 = 16;
const END: u16 = 17;

/// `NFT_REG_1`
const REGISTER: u32 = 1;

/// One of the chains.
pub(super) struct Chain {
    pub name: &'static str,
    pub direction: Direction,
    /// At prerouting, not at output.
    pub receives: bool,
}

pub(super) const CHAINS: [Chain; 4] = [
    Chain { name: "original-in", direction: Direction::Original, receives: true },
    Chain { name: "original-out", direction: Direction::Original, receives: false },
    Chain { name: "reply-in", direction: Direction::Reply, receives: true },
    Chain { name: "reply-out", direction: Direction::Reply, receives: false },
];

/// A transaction: its bytes, and the number of its last message, which is acknowledged last.
pub(super) struct Batch {
    pub bytes: Vec<u8>,
    pub messages: u32,
}

/// The number of the message that makes the table.
pub(super) const TABLE_MESSAGE: u32 = 2;

pub(super) fn family(tuple: &TraceTuple) -> Family {
    if tuple.source.is_ipv4() { Family::Ip } else { Family::Ip6 }
}

fn number(family: Family) -> u8 {
    if family == Family::Ip { 2 } else { 10 }
}

/// What arms a trace.
pub(super) fn arm(request: &TraceRequest) -> Batch {
    let family = number(family(&request.tuple));
    let mut batch = Batch { bytes: Vec::new(), messages: 0 };
    batch.frame(BEGIN);
    batch.add(family, libc::NFT_MSG_NEWTABLE, CREATE, &|body| {
        named(body, 1, TABLE);
        push(body, 2, &OWNER.to_be_bytes());
    });
    batch.add(family, libc::NFT_MSG_NEWOBJ, CREATE, &|body| {
        object(body, MATCHED, COUNTER, &|data| {
            push(data, 1, &0_u64.to_be_bytes());
            push(data, 2, &0_u64.to_be_bytes());
        });
    });
    batch.add(family, libc::NFT_MSG_NEWOBJ, CREATE, &|body| {
        object(body, PACKETS, LIMIT, &|data| {
            let (rate, unit, burst, kind) = (1, 2, 3, 4);
            push(data, rate, &1_u64.to_be_bytes());
            push(data, unit, &WEEK.to_be_bytes());
            push(data, burst, &u32::from(request.packets).to_be_bytes());
            // NFT_LIMIT_PKTS
            push(data, kind, &0_u32.to_be_bytes());
        });
    });
    for chain in &CHAINS {
        let interface = request.interface.as_deref().filter(|_| chain.direction == Direction::Original);
        let is_left_out = interface.is_some() && !chain.receives;
        if is_left_out || request.tuples(chain.direction).is_empty() {
            continue;
        }
        batch.add(family, libc::NFT_MSG_NEWCHAIN, CREATE, &|body| new_chain(body, chain));
        for tuple in request.tuples(chain.direction) {
            // NLM_F_CREATE with NLM_F_APPEND
            batch.add(family, libc::NFT_MSG_NEWRULE, PLAIN | 0xc00, &|body| new_rule(body, chain, &tuple, interface));
        }
    }
    batch.frame(END);
    batch
}

/// What removes the table by name.
pub(super) fn disarm(request: &TraceRequest) -> Batch {
    let family = number(family(&request.tuple));
    let mut batch = Batch { bytes: Vec::new(), messages: 0 };
    batch.frame(BEGIN);
    batch.add(family, libc::NFT_MSG_DELTABLE, PLAIN, &|body| named(body, 1, TABLE));
    batch.frame(END);
    batch
}

/// `struct nfgenmsg` and the table's name, as requests about it begin.
pub(super) fn about_table(request: &TraceRequest) -> Vec<u8> {
    let mut body = vec![number(family(&request.tuple)), 0, 0, 0];
    named(&mut body, 1, TABLE);
    body
}

impl Batch {
    /// Begin and end name the subsystem in place of a resource, and are not acknowledged.
    fn frame(&mut self, kind: u16) {
        let subsystem = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).expect("10").to_be_bytes();
        let numbered = self.messages + u32::from(kind == BEGIN);
        self.message(kind, 1, numbered, &[0, 0, subsystem[0], subsystem[1]]);
        self.messages = numbered;
    }

    fn add(&mut self, family: u8, kind: libc::c_int, flags: u16, write: &dyn Fn(&mut Vec<u8>)) {
        let mut body = vec![family, 0, 0, 0];
        write(&mut body);
        let kind = u16::try_from(libc::NFNL_SUBSYS_NFTABLES << 8 | kind).expect("message types are below 256");
        self.messages += 1;
        self.message(kind, flags, self.messages, &body);
    }

    fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: &[u8]) {
        const HEADER_BYTES: usize = 16;
        let length = u32::try_from(HEADER_BYTES + body.len()).expect("messages are a few hundred bytes");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

fn named(body: &mut Vec<u8>, kind: u16, name: &str) {
    push(body, kind, &[name.as_bytes(), b"\0"].concat());
}

fn nested(body: &mut Vec<u8>, kind: u16, write: &dyn Fn(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    push(body, kind | NESTED, &inner);
}

fn object(body: &mut Vec<u8>, name: &str, kind: u32, write: &dyn Fn(&mut Vec<u8>)) {
    named(body, 1, TABLE);
    named(body, 2, name);
    push(body, 3, &kind.to_be_bytes());
    nested(body, 4, write);
}

fn new_chain(body: &mut Vec<u8>, chain: &Chain) {
    let (table, name, hook, policy, kind) = (1, 3, 4, 5, 7);
    let (number, priority) = (1, 2);
    named(body, table, TABLE);
    named(body, name, chain.name);
    nested(body, hook, &|hook| {
        // NF_INET_PRE_ROUTING, NF_INET_LOCAL_OUT
        push(hook, number, &(if chain.receives { 0_u32 } else { 3 }).to_be_bytes());
        push(hook, priority, &PRIORITY.to_be_bytes());
    });
    // NF_ACCEPT
    push(body, policy, &1_u32.to_be_bytes());
    named(body, kind, "filter");
}

fn new_rule(body: &mut Vec<u8>, chain: &Chain, tuple: &TraceTuple, interface: Option<&str>) {
    let (table, name, expressions) = (1, 2, 4);
    named(body, table, TABLE);
    named(body, name, chain.name);
    nested(body, expressions, &|list| {
        if let Some(interface) = interface {
            // NFT_META_IIFNAME, sixteen bytes filled up with zeros.
            let mut name = [0; 16];
            for (place, byte) in name.iter_mut().zip(interface.bytes().take(15)) {
                *place = byte;
            }
            meta(list, 6);
            equals(list, &name);
        }
        // NFT_META_L4PROTO
        meta(list, 16);
        equals(list, &[tuple.protocol.number()]);
        let (from, to) = if tuple.source.is_ipv4() { (12, 16) } else { (8, 24) };
        for (offset, address) in [(from, tuple.source), (to, tuple.destination)] {
            let address = octets(address);
            payload(list, 1, offset, address.len());
            equals(list, &address);
        }
        for (offset, port) in [(0, tuple.source_port), (2, tuple.destination_port)] {
            if let Some(port) = port {
                payload(list, 2, offset, 2);
                equals(list, &port.to_be_bytes());
            }
        }
        reference(list, COUNTER, MATCHED);
        reference(list, LIMIT, PACKETS);
        trace(list);
    });
}

/// One expression, by its name.
fn expression(list: &mut Vec<u8>, name: &str, write: &dyn Fn(&mut Vec<u8>)) {
    nested(list, 1, &|element| {
        named(element, 1, name);
        nested(element, 2, write);
    });
}

fn meta(list: &mut Vec<u8>, key: u32) {
    expression(list, "meta", &|data| {
        push(data, 1, &REGISTER.to_be_bytes());
        push(data, 2, &key.to_be_bytes());
    });
}

/// `base` is `NFT_PAYLOAD_NETWORK_HEADER` (1) or `NFT_PAYLOAD_TRANSPORT_HEADER` (2).
fn payload(list: &mut Vec<u8>, base: u32, offset: u32, bytes: usize) {
    let bytes = u32::try_from(bytes).expect("addresses are 16 bytes at most");
    expression(list, "payload", &|data| {
        for (kind, value) in [(1, REGISTER), (2, base), (3, offset), (4, bytes)] {
            push(data, kind, &value.to_be_bytes());
        }
    });
}

fn equals(list: &mut Vec<u8>, value: &[u8]) {
    expression(list, "cmp", &|data| {
        push(data, 1, &REGISTER.to_be_bytes());
        // NFT_CMP_EQ
        push(data, 2, &0_u32.to_be_bytes());
        nested(data, 3, &|data| push(data, 1, value));
    });
}

fn reference(list: &mut Vec<u8>, kind: u32, name: &str) {
    expression(list, "objref", &|data| {
        push(data, 1, &kind.to_be_bytes());
        named(data, 2, name);
    });
}

/// `meta nftrace set 1`
fn trace(list: &mut Vec<u8>) {
    expression(list, "immediate", &|data| {
        push(data, 1, &REGISTER.to_be_bytes());
        nested(data, 2, &|data| push(data, 1, &[1]));
    });
    // NFT_META_NFTRACE
    expression(list, "meta", &|data| {
        push(data, 2, &12_u32.to_be_bytes());
        push(data, 3, &REGISTER.to_be_bytes());
    });
}
