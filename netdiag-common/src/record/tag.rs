//! Tagged packets: what is looked for, and one record for each place that such a packet passes.
//!
//! SPDX-License-Identifier: MIT OR GPL-2.0-only

/// Tags that can be armed at one time on a node.
pub const TAGS: u32 = 16;

/// Words of the set of ports that any tag has, one bit for each.
pub const PORT_WORDS: u32 = 65_536 / 64;

/// Return addresses kept of the stack of a drop: as many as of an exemplar, so that netfilter's hook is among them.
pub const STACK_DEPTH: usize = 16;

/// Events that the programs send of one tag. The agent keeps fewer, but on a kernel that several nodes share it has to leave
/// out those of the others first.
pub const MAX_EVENTS: u64 = 1024;

/// Points that a packet passes. `netif_receive_skb`: a device took it.
pub const RECEIVED: u8 = 0;
/// `net_dev_queue`: it was given to a device, which may keep it in a queue.
pub const SENT: u8 = 1;
/// `kfree_skb`.
pub const DROPPED: u8 = 2;
/// `inet_sock_set_state`: a listener has a new connection with it.
pub const DELIVERED: u8 = 3;
/// `inet_sock_set_state`: the socket that sent it is connected.
pub const CONNECTED: u8 = 4;

/// Bits of [`TupleKey`]'s values beside the tag's number plus one: the tuple is that of answers.
pub const ANSWERS: u32 = 1 << 8;

/// The packets that a tag follows. The addresses are words as they lie in memory, IPv4 in the low half of the first. Source and
/// its port 0: the first packet of a connection from anywhere. Of ICMP the source port is the echo's identifier, both ways.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TupleKey {
    pub source: [u64; 2],
    pub destination: [u64; 2],
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
    pub pad: u16,
}
const _: () = assert!(size_of::<TupleKey>() == 40);

/// What became of the events of one tag: seen = kept + beyond_limit + ring_full.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub seen: u64,
    pub kept: u64,
    /// After [`MAX_EVENTS`].
    pub beyond_limit: u64,
    pub ring_full: u64,
}
const _: () = assert!(size_of::<Counts>() == 32);

/// One packet at one point.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Monotonic clock, nanoseconds since boot.
    pub at_ns: u64,
    /// `net->net_cookie`, or the namespace's inode on kernels before 5.12; 0 when the packet led to none.
    pub netns: u64,
    /// Of a drop: address after the call that freed the packet.
    pub location: u64,
    /// As it lies in memory; IPv4 in the first four bytes.
    pub source: [u64; 2],
    pub destination: [u64; 2],
    /// Of a drop: raw `enum skb_drop_reason`, 0 on kernels without reasons.
    pub reason: u32,
    pub ifindex: u32,
    /// Of TCP; of DNS its identifier.
    pub sequence: u32,
    /// Of the IP packet, as its header says.
    pub length: u32,
    pub source_port: u16,
    pub destination_port: u16,
    pub point: u8,
    /// The tag's number.
    pub tag: u8,
    /// 1 when it is an answer.
    pub is_answer: u8,
    pub protocol: u8,
    pub version: u8,
    /// 0 when the point has no packet.
    pub ttl: u8,
    pub tcp_flags: u8,
    pub pad: u8,
    /// Return addresses in `stack`; 0 or negative when there are none.
    pub frames: i32,
    pub stack: [u64; STACK_DEPTH],
}
const _: () = assert!(size_of::<Event>() == 88 + 8 * STACK_DEPTH);
