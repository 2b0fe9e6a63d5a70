//! What the kernel says it did: `NFT_MSG_TRACE`.

use std::fmt;

use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::state::Family;
use netdiag_common::observation::trace::{TraceEvent, TraceKind};
use netdiag_node::host::trace::event::events;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNLGRP_NFTRACE`
const GROUP: u32 = 9;

pub struct Tracer(Socket);

/// One message, as far as it can be foreseen.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    pub family: Family,
    pub table: String,
    pub chain: String,
    pub kind: Kind,
    pub handle: Option<u64>,
    pub verdict: Verdict,
    pub mark: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Policy,
    /// A rule, or without a handle the end of a chain. Kernels differ in which of the two they call a return.
    Rule,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain, kind, handle, verdict, mark } = self;
        write!(f, "{family} {table} {chain} {kind:?} {handle:?} {verdict:?} mark {mark:#x}")
    }
}

impl From<TraceEvent> for Event {
    fn from(event: TraceEvent) -> Self {
        let TraceEvent { family, table, chain, handle, verdict, mark, .. } = event;
        let kind = if event.kind == TraceKind::Policy { Kind::Policy } else { Kind::Rule };
        Self { family, table, chain, kind, handle, verdict, mark }
    }
}

impl Tracer {
    pub fn open() -> Self {
        let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
        socket.bind(&SocketAddr::new(0, 0)).unwrap();
        socket.add_membership(GROUP).unwrap();
        socket.set_rx_buf_sz(4 << 20_usize).unwrap();
        Self(socket)
    }

    /// All events before that of the packet which ends in the table of the test; `Err` with those that came, when that one
    /// does not.
    pub fn until_last(&self) -> Result<Vec<Event>, Vec<Event>> {
        let mut seen = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while std::time::Instant::now() < patience {
            match self.0.recv(&mut &mut buffer[..], libc::MSG_DONTWAIT) {
                Ok(length) => {
                    for traced in events(&buffer[..length]) {
                        let event = Event::from(traced.unwrap().event);
                        if event.table == "probe" && event.kind == Kind::Rule && event.verdict == Verdict::Drop {
                            return Ok(seen);
                        }
                        seen.push(event);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
                Err(error) => panic!("trace: {error}"),
            }
        }
        Err(seen)
    }
}

/// Removes all entries of connection tracking from this namespace.
pub fn forget_connections() {
    // A message without payload but `struct nfgenmsg`: IPCTNL_MSG_CT_DELETE with NLM_F_REQUEST and NLM_F_ACK.
    let mut request = Vec::from(20_u32.to_ne_bytes());
    request.extend(0x0102_u16.to_ne_bytes());
    request.extend(5_u16.to_ne_bytes());
    request.extend([0; 12]);
    let mut socket = Socket::new(NETLINK_NETFILTER).unwrap();
    socket.bind_auto().unwrap();
    socket.send_to(&request, &SocketAddr::new(0, 0), 0).unwrap();
    let mut answer = [0; 128];
    let length = socket.recv(&mut &mut answer[..], 0).unwrap();
    assert_eq!(answer[16..20.min(length)], [0; 4], "connections were not removed");
}
