//! The expressions that rules of nf_tables are made of, as the kernel keeps them: registers in, registers or a verdict out.
//!
//! Names and fields follow Linux 6.18, `net/netfilter/nft_*.c` (the file is named with each), numbers follow
//! `include/uapi/linux/netfilter/nf_tables.h`. Values are bytes as they stand in a register, so integers of the host
//! (marks, indexes, states) are in the byte order of the machine that was read.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "expression", rename_all = "snake_case")]
pub enum Expression {
    /// `nft_immediate.c`: writes a constant, or ends the rule with a verdict.
    Immediate {
        to: u32,
        data: Data,
    },
    /// `nft_payload.c`
    Payload {
        base: Base,
        offset: u32,
        bytes: u32,
        to: u32,
    },
    /// `nft_payload.c`, the other way.
    PayloadWrite {
        base: Base,
        offset: u32,
        bytes: u32,
        from: u32,
    },
    /// `nft_exthdr.c`: part of an IPv6 extension header, a TCP option, an IPv4 option.
    Exthdr {
        source: ExthdrSource,
        kind: u8,
        offset: u32,
        bytes: u32,
        presence: bool,
        to: u32,
    },
    /// `nft_exthdr.c`: changes part of a TCP option, or removes the option where there is nothing to change it to.
    ExthdrWrite {
        kind: u8,
        offset: u32,
        bytes: u32,
        from: Option<u32>,
    },
    /// `nft_meta.c`, `enum nft_meta_keys`.
    Meta {
        key: u32,
        to: u32,
    },
    MetaSet {
        key: u32,
        from: u32,
    },
    /// `nft_ct.c`, `enum nft_ct_keys`.
    Ct {
        key: u32,
        direction: Option<u8>,
        to: u32,
    },
    CtSet {
        key: u32,
        direction: Option<u8>,
        from: u32,
    },
    /// `nft_cmp.c`: bytes as numbers in network byte order.
    Compare {
        from: u32,
        operator: Operator,
        value: Vec<u8>,
    },
    /// `nft_range.c`
    Range {
        from: u32,
        negated: bool,
        first: Vec<u8>,
        last: Vec<u8>,
    },
    /// `nft_bitwise.c`
    Bitwise {
        from: u32,
        to: u32,
        bytes: u32,
        operation: Bitwise,
    },
    /// `nft_byteorder.c`: turns the bytes of each unit of `size` around on a little-endian machine.
    Byteorder {
        from: u32,
        to: u32,
        bytes: u32,
        size: u32,
    },
    /// `nft_lookup.c`: `to` is none for a set, 0 for a map of verdicts.
    Lookup {
        set: Arc<str>,
        from: u32,
        to: Option<u32>,
        negated: bool,
    },
    /// `nft_dynset.c`
    Dynset {
        set: Arc<str>,
        operation: Dynset,
        key: u32,
        data: Option<u32>,
        negated: bool,
        expressions: Vec<Expression>,
    },
    /// `nft_counter.c`
    Counter {
        packets: u64,
        bytes: u64,
    },
    /// `nft_limit.c`. How much of the limit is left cannot be read.
    Limit {
        words: String,
        negated: bool,
    },
    /// `nft_quota.c`
    Quota {
        bytes: u64,
        consumed: u64,
        negated: bool,
    },
    /// `nft_connlimit.c`
    Connlimit {
        count: u32,
        negated: bool,
    },
    /// `nft_last.c`
    Last,
    /// `nft_numgen.c`
    Numgen {
        random: bool,
        modulus: u32,
        offset: u32,
        to: u32,
    },
    /// `nft_hash.c`, `jhash`: a seed that the kernel chose itself is not shown.
    Jhash {
        from: u32,
        bytes: u32,
        modulus: u32,
        seed: Option<u32>,
        offset: u32,
        to: u32,
    },
    /// `nft_hash.c`, `symhash`: the key is a secret of the kernel.
    Symhash {
        modulus: u32,
        offset: u32,
        to: u32,
    },
    /// `nft_fib.c`, `enum nft_fib_result` and `enum nft_fib_flags`.
    Fib {
        result: u32,
        flags: u32,
        to: u32,
    },
    /// `nft_socket.c`, `enum nft_socket_keys`.
    Socket {
        key: u32,
        level: u32,
        to: u32,
    },
    /// `nft_rt.c`, `enum nft_rt_keys`.
    Rt {
        key: u32,
        to: u32,
    },
    /// `nft_osf.c`, `nft_tunnel.c`, `nft_xfrm.c`: load something that netdiag does not read.
    Unreadable {
        words: String,
        bytes: u32,
        to: u32,
    },
    /// `nft_nat.c`
    Nat {
        kind: NatKind,
        family: u8,
        address: [Option<u32>; 2],
        port: [Option<u32>; 2],
        flags: u32,
    },
    /// `nft_masq.c`
    Masquerade {
        port: [Option<u32>; 2],
        flags: u32,
    },
    /// `nft_redir.c`
    Redirect {
        port: [Option<u32>; 2],
        flags: u32,
    },
    /// `nft_tproxy.c`
    Tproxy {
        family: u8,
        address: Option<u32>,
        port: Option<u32>,
    },
    /// `nft_reject.c`, `enum nft_reject_types`.
    Reject {
        kind: u32,
        code: u8,
    },
    /// `nft_ct.c`
    Notrack,
    /// `nft_log.c`
    Log,
    /// `nft_queue.c`
    Queue {
        queues: Queues,
        bypass: bool,
    },
    /// `nft_objref.c`, `NFT_OBJECT_*`
    Object {
        kind: u32,
        name: String,
    },
    /// `nft_objref.c`: the object is the value of a map.
    ObjectMap {
        set: Arc<str>,
        from: u32,
    },
    /// `nft_flow_offload.c`
    FlowOffload {
        table: String,
    },
    /// `nft_synproxy.c`
    Synproxy,
    /// `nft_dup_ipv4.c`, `nft_dup_ipv6.c`: a copy goes elsewhere, this packet stays.
    Duplicate,
    /// `ip_tables.c`, `ip6_tables.c`: what an entry itself asks for (`struct ipt_ip`, `struct ip6t_ip6`).
    XtEntry {
        info: Vec<u8>,
    },
    /// `nft_compat.c`: a match of iptables, with its structure as the kernel keeps it.
    XtMatch {
        name: Arc<str>,
        revision: u32,
        info: Vec<u8>,
    },
    XtTarget {
        name: Arc<str>,
        revision: u32,
        info: Vec<u8>,
    },
    /// One that this version does not know.
    Unknown {
        name: String,
    },
}

/// A constant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    Value(Vec<u8>),
    Verdict(Verdict),
}

/// What a rule, an element or a policy decides (`NFT_*` of nf_tables.h and `NF_*` of netfilter.h).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Accept,
    Drop,
    Stolen,
    Queue {
        number: u16,
        bypass: bool,
    },
    /// To the next rule.
    Continue,
    /// As [`Verdict::Continue`], because something did not match.
    Break,
    Jump(Arc<str>),
    Goto(Arc<str>),
    Return,
    /// A code that this version does not know.
    Other(i32),
}

/// Which queue a packet is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Queues {
    /// One of so many: by a hash of the packet's addresses, or by the processor that handles it.
    Range { first: u16, total: u16, by_processor: bool },
    /// The register has its number.
    Register(u32),
}

/// `enum nft_payload_bases`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    Link,
    Network,
    Transport,
    Inner,
}

/// `enum nft_exthdr_op`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExthdrSource {
    Ipv6,
    TcpOption,
    Ipv4Option,
    SctpChunk,
    DccpOption,
}

/// `enum nft_cmp_ops`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// `enum nft_bitwise_ops`. The last three take a register, since Linux 6.13.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bitwise {
    /// `(value & mask) ^ xor`
    MaskXor {
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    ShiftLeft {
        bits: u32,
    },
    ShiftRight {
        bits: u32,
    },
    And {
        with: u32,
    },
    Or {
        with: u32,
    },
    Xor {
        with: u32,
    },
}

/// `enum nft_dynset_ops`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dynset {
    Add,
    Update,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NatKind {
    Source,
    Destination,
}
