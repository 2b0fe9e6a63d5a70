//! What the kernel says it did: `NFT_MSG_TRACE`.

use std::fmt;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNLGRP_NFTRACE`
const GROUP: u32 = 9;

/// `NF_DROP`
const DROP: i32 = 0;

pub struct Tracer(Socket);

/// One message, as far as it can be foreseen.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    /// `NFPROTO_*` of the table.
    pub family: u8,
    pub table: String,
    pub chain: String,
    pub kind: Kind,
    pub handle: Option<u64>,
    /// Code, and the chain it leads to. Of a policy, its code.
    pub verdict: (i32, Option<String>),
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
        let mut events = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while std::time::Instant::now() < patience {
            match self.0.recv(&mut &mut buffer[..], libc::MSG_DONTWAIT) {
                Ok(length) => {
                    for event in messages(&buffer[..length]) {
                        if event.table == "probe" && event.kind == Kind::Rule && event.verdict.0 == DROP {
                            return Ok(events);
                        }
                        events.push(event);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
                Err(error) => panic!("trace: {error}"),
            }
        }
        Err(events)
    }
}

fn messages(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while bytes.len() >= 20 {
        let length = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        let family = bytes[16];
        events.extend(event(family, &bytes[20..length]));
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    events
}

fn event(family: u8, body: &[u8]) -> Option<Event> {
    let text = |kind| {
        find(body, kind).map(|value| {
            String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
        })
    };
    let number = |body: &[u8], kind| find(body, kind).map(|value| u32::from_be_bytes(value[..4].try_into().unwrap()));
    let kind = match number(body, 4)? {
        1 => Kind::Policy,
        _ => Kind::Rule,
    };
    let verdict = match kind {
        Kind::Policy => (number(body, 16)?.cast_signed(), None),
        Kind::Rule => {
            let verdict = find(body, 5)?;
            let chain = find(verdict, 2).map(|value| {
                String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
            });
            (number(verdict, 1)?.cast_signed(), chain)
        }
    };
    Some(Event {
        family,
        table: text(1)?,
        chain: text(2)?,
        kind,
        handle: find(body, 3).map(|value| u64::from_be_bytes(value[..8].try_into().unwrap())),
        verdict,
        mark: number(body, 14).unwrap_or(0),
    })
}

fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
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
