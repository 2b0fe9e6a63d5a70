//! Reading `struct sock`: whose it is, and its two ends.

use aya_ebpf::Global;

use crate::read::{Load, O_SOCK_NET, Probed, net_id};

/// Offsets in bytes. Those of `struct sock_common` hold for request sockets too.
#[unsafe(no_mangle)]
static O_SOCK_FAMILY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SOCK_STATE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SOCK_LOCAL_PORT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SOCK_PEER_PORT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SOCK_LOCAL4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SOCK_PEER4: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SOCK_LOCAL6: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SOCK_PEER6: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SOCK_PROTOCOL: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_SOCK_ERROR: Global<u32> = Global::new(0);
/// Of `struct inet_sock` and `struct tcp_sock`, which begin with their `struct sock`.
#[unsafe(no_mangle)]
static O_INET_SOURCE_PORT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static O_TCP_ROUND_TRIP: Global<u32> = Global::new(0);

const AF_INET6: u16 = 10;

/// One end of a connection: the address's bytes as they lie in memory, IPv4 in the low half of the first word.
#[derive(Clone, Copy)]
pub struct End {
    pub address: [u64; 2],
    pub port: u16,
}

pub struct Ends {
    pub version: u8,
    pub local: End,
    pub peer: End,
}

/// # Safety
/// `sock` must be a `struct sock`.
#[inline(always)]
pub unsafe fn protocol<L: Load>(sock: *const u8) -> u16 {
    unsafe { L::load::<u16>(sock, O_SOCK_PROTOCOL.load()) }
}

/// The error that the application will be told, 0 when there is none.
///
/// # Safety
/// `sock` must be a `struct sock`.
#[inline(always)]
pub unsafe fn error<L: Load>(sock: *const u8) -> u32 {
    unsafe { L::load::<u32>(sock, O_SOCK_ERROR.load()) }
}

/// # Safety
/// `sock` must begin with a `struct sock_common`.
#[inline(always)]
pub unsafe fn state<L: Load>(sock: *const u8) -> u8 {
    unsafe { L::load::<u8>(sock, O_SOCK_STATE.load()) }
}

/// # Safety
/// `sock` must begin with a `struct sock_common`.
#[inline(always)]
pub unsafe fn sock_netns<L: Load>(sock: *const u8) -> u64 {
    unsafe { net_id::<L>(L::load::<*const u8>(sock, O_SOCK_NET.load())) }
}

/// # Safety
/// `sock` must begin with a `struct sock_common`.
#[inline(always)]
pub unsafe fn local_port<L: Load>(sock: *const u8) -> u16 {
    unsafe { L::load::<u16>(sock, O_SOCK_LOCAL_PORT.load()) }
}

/// Both ends. An IPv6 socket that speaks IPv4 (RFC 4291, 2.5.5.2) has IPv4 ends.
///
/// # Safety
/// `sock` must begin with a `struct sock_common`.
#[inline(always)]
pub unsafe fn ends<L: Load>(sock: *const u8) -> Ends {
    unsafe {
        let mut local_port = local_port::<L>(sock);
        if local_port == 0 {
            local_port = source_port(sock);
        }
        let peer_port = u16::from_be(L::load::<u16>(sock, O_SOCK_PEER_PORT.load()));
        if L::load::<u16>(sock, O_SOCK_FAMILY.load()) == AF_INET6 {
            let peer = address6::<L>(sock, O_SOCK_PEER6.load());
            if !is_ipv4(&peer) {
                let local = address6::<L>(sock, O_SOCK_LOCAL6.load());
                return Ends {
                    version: 6,
                    local: End { address: local, port: local_port },
                    peer: End { address: peer, port: peer_port },
                };
            }
        }
        let local = u64::from(L::load::<u32>(sock, O_SOCK_LOCAL4.load()));
        let peer = u64::from(L::load::<u32>(sock, O_SOCK_PEER4.load()));
        Ends {
            version: 4,
            local: End { address: [local, 0], port: local_port },
            peer: End { address: [peer, 0], port: peer_port },
        }
    }
}

/// The local port, also of a socket that gave it back because it is being closed (`inet_put_port()`); 0 when it had none.
///
/// # Safety
/// `sock` must be a `struct inet_sock`.
#[inline(always)]
pub unsafe fn source_port(sock: *const u8) -> u16 {
    u16::from_be(unsafe { Probed::load::<u16>(sock, O_INET_SOURCE_PORT.load()) })
}

#[inline(always)]
unsafe fn address6<L: Load>(sock: *const u8, offset: u32) -> [u64; 2] {
    // Four words of 32 bits: a load of 64 would cross the members of `struct in6_addr`, which the verifier refuses.
    unsafe {
        let word = |n: u32| u64::from(L::load::<u32>(sock, offset + 4 * n));
        [word(0) | word(1) << 32, word(2) | word(3) << 32]
    }
}

#[inline(always)]
fn is_ipv4(address: &[u64; 2]) -> bool {
    address[0] == 0 && address[1] as u32 == 0xffff_0000
}

/// The smoothed round trip in microseconds, 0 when none was measured. The kernel keeps eight times that.
///
/// # Safety
/// `sock` must be the `struct sock` of a TCP socket.
#[inline(always)]
pub unsafe fn round_trip_us(sock: *const u8) -> u32 {
    unsafe { Probed::load::<u32>(sock, O_TCP_ROUND_TRIP.load()) >> 3 }
}
