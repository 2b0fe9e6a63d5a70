//! Where DNS messages are in a packet: ports, headers, and the messages of a segment.

use aya_ebpf::Global;
use aya_ebpf::programs::SkBuffContext;
use netdiag_common::record::dns::HEADER_BYTES;

use super::count::{Place, add, count, place};

/// Four ports that DNS servers listen on, each in the byte order of packets, and how many of them differ.
#[unsafe(no_mangle)]
pub(super) static DNS_PORTS: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(super) static DNS_PORT_COUNT: Global<u32> = Global::new(1);

/// Messages looked for in one TCP segment: glibc sends its A and AAAA queries in one.
pub(super) const MESSAGES: usize = 4;

pub(super) const UDP: u8 = 17;
pub(super) const TCP: u8 = 6;

/// Flags of the header (RFC 1035 §4.1.1).
pub(super) const QR: u16 = 0x8000;
pub(super) const OPCODE: u16 = 0x7800;
pub(super) const TC: u16 = 0x0200;

/// What the ports say, before anything else is looked at.
pub(super) struct Packet {
    /// Offset of the layer 4 header.
    pub(super) transport: u32,
    pub(super) protocol: u8,
    pub(super) version: u8,
    /// In the byte order of packets.
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
}

/// None for what has no DNS port. IPv6 packets with extension headers are not looked at: sockets of resolvers send none.
#[inline(always)]
pub(super) fn dns(ctx: &SkBuffContext) -> Option<Packet> {
    let skb = ctx.skb.skb;
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    // An IPv4 header without options and two ports.
    if data + 24 > end {
        return None;
    }
    let first = unsafe { *(data as *const u8) };
    // Each place is read where its bound was checked: behind a branch the verifier knows no bound of a merged pointer.
    let (version, transport, protocol, ports);
    if first == 0x45 {
        (version, transport) = (4, 20);
        protocol = unsafe { ((data + 9) as *const u8).read_volatile() };
        ports = unsafe { ((data + 20) as *const u32).read_volatile() };
    } else if first >> 4 == 6 {
        if data + 44 > end {
            return None;
        }
        (version, transport) = (6, 40);
        protocol = unsafe { ((data + 6) as *const u8).read_volatile() };
        ports = unsafe { ((data + 40) as *const u32).read_volatile() };
    } else {
        // With options: rare enough for a helper.
        (version, transport) = (4, u32::from(first & 0xf) * 4);
        protocol = unsafe { ((data + 9) as *const u8).read_volatile() };
        ports = ctx.load::<u32>(transport as usize).ok()?;
    }
    if protocol != UDP && protocol != TCP {
        return None;
    }
    let (source_port, destination_port) = (ports as u16, (ports >> 16) as u16);
    if !is_dns(source_port) && !is_dns(destination_port) {
        return None;
    }
    Some(Packet { transport, protocol, version, source_port, destination_port })
}

#[inline(always)]
pub(super) fn is_dns(port: u16) -> bool {
    let ports = DNS_PORTS.load();
    if port == ports as u16 {
        return true;
    }
    DNS_PORT_COUNT.load() > 1
        && (port == (ports >> 16) as u16 || port == (ports >> 32) as u16 || port == (ports >> 48) as u16)
}

/// Id, flags and counts.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) flags: u16,
    pub(super) questions: u16,
    pub(super) answers: u16,
}

/// When the packet ends before it: neither a query nor an answer. No `Option`, whose empty fields the verifier would not let
/// be copied.
pub(super) const NO_HEADER: Header = Header { id: 0, flags: u16::MAX, questions: 0, answers: 0 };

#[inline(always)]
pub(super) fn header(ctx: &SkBuffContext, at: u32, available: u32) -> Header {
    if available < HEADER_BYTES as u32 {
        return NO_HEADER;
    }
    let Ok(words) = ctx.load::<u64>(at as usize) else { return NO_HEADER };
    let field = |n: u32| u16::from_be((words >> (16 * n)) as u16);
    Header { id: field(0), flags: field(1), questions: field(2), answers: field(3) }
}

impl Header {
    /// An ordinary query: one question, no answers.
    #[inline(always)]
    pub(super) fn is_query(self) -> bool {
        self.flags & (QR | OPCODE) == 0 && self.questions == 1 && self.answers == 0
    }

    /// An answer to an ordinary query. A server that cannot read the question answers without one.
    #[inline(always)]
    pub(super) fn is_answer(self) -> bool {
        self.flags & (QR | OPCODE) == QR && self.questions <= 1
    }
}

/// Calls `found` with the header of each message, its offset and the bytes from there to the end of the packet. `found` says
/// whether it knew what to do with it; what it did not know in TCP is the rest of a message that began before.
#[inline(always)]
pub(super) fn messages(ctx: &SkBuffContext, packet: &Packet, found: impl Fn(&Place, Header, u32, u32) -> bool) {
    let total = ctx.len();
    if packet.protocol == UDP {
        let at = packet.transport + 8;
        let Some(place) = place() else { return };
        let available = total.saturating_sub(at);
        found(&place, header(ctx, at, available), at, available);
        return;
    }
    let Ok(offset) = ctx.load::<u8>(packet.transport as usize + 12) else { return };
    let mut at = packet.transport + u32::from(offset >> 4) * 4;
    // Without payload: the connection's own segments.
    if at >= total {
        return;
    }
    let Some(place) = place() else { return };
    for _ in 0..MESSAGES {
        // RFC 1035 §4.2.2: two bytes of length. They may have come in a segment of their own.
        let length = ctx.load::<u16>(at as usize).map_or(0, u16::from_be);
        let behind = at + 2;
        if length as usize >= HEADER_BYTES
            && behind < total
            && found(&place, header(ctx, behind, total - behind), behind, (total - behind).min(u32::from(length)))
        {
            at = behind + u32::from(length);
            if at == total {
                return;
            }
            // The message goes on in the next segment.
            if at > total {
                break;
            }
            continue;
        }
        if found(&place, header(ctx, at, total - at), at, total - at) {
            return;
        }
        break;
    }
    unsafe { count!(place, tcp_rest) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// An address of the packet, as it lies there.
#[inline(always)]
pub(super) fn address(ctx: &SkBuffContext, packet: &Packet, side: Side) -> [u64; 2] {
    if packet.version == 4 {
        let at = if side == Side::Source { 12 } else { 16 };
        [u64::from(ctx.load::<u32>(at).unwrap_or(0)), 0]
    } else {
        let at = if side == Side::Source { 8 } else { 24 };
        ctx.load(at).unwrap_or([0; 2])
    }
}
