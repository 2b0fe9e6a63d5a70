//! What the kernel knows of a TCP connection: `TCP_INFO` (`struct tcp_info`, include/uapi/linux/tcp.h).

use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use socket2::Socket;

/// Newer kernels only add fields at the end.
const BYTES: usize = 160;
/// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;
// Offsets of fields.
const STATE: usize = 0;
const SEND_MSS: usize = 16;
const RTT: usize = 68;
const RETRANSMITS: usize = 100;
const BYTES_ACKED: usize = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TcpInfo {
    /// `tcpi_state`.
    state: u8,
    /// Bytes of payload in one segment of ours (`tcpi_snd_mss`).
    pub(super) send_mss: u32,
    /// Smoothed (`tcpi_rtt`), microseconds.
    pub(super) rtt_us: u32,
    /// Segments sent again, SYNs too (`tcpi_total_retrans`).
    pub(super) retransmits: u32,
    /// `tcpi_bytes_acked` (Linux 4.1), the SYN not included.
    pub(super) bytes_acked: Option<u64>,
}

impl TcpInfo {
    /// The handshake has ended well; the far side may have sent its FIN already.
    pub(super) fn is_connected(self) -> bool {
        matches!(self.state, TCP_ESTABLISHED | TCP_CLOSE_WAIT)
    }
}

pub(super) fn tcp_info(socket: &Socket) -> io::Result<TcpInfo> {
    let mut bytes = [0u8; BYTES];
    let mut length = libc::socklen_t::try_from(BYTES).expect("160 fits");
    // SAFETY: the kernel writes at most `length` bytes into `bytes`, which lives until the call returns.
    let result = unsafe {
        let socket = socket.as_raw_fd();
        libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, bytes.as_mut_ptr().cast(), &raw mut length)
    };
    Errno::result(result)?;
    let told = bytes.get(..length as usize).unwrap_or(&bytes);
    parse(told).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

fn parse(told: &[u8]) -> Option<TcpInfo> {
    let int = |at: usize| Some(u32::from_ne_bytes(told.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(told.get(at..at + 8)?.try_into().ok()?));
    Some(TcpInfo {
        state: *told.get(STATE)?,
        send_mss: int(SEND_MSS)?,
        rtt_us: int(RTT)?,
        retransmits: int(RETRANSMITS)?,
        bytes_acked: long(BYTES_ACKED),
    })
}
