//! Requests and dumps on a netlink socket of nf_tables (`NETLINK_NETFILTER`, subsystem 10).

use std::io;
use std::ops::ControlFlow;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::attribute;

/// The kernel fills at most 32 KiB per datagram of a dump (`netlink_dump`, Linux 4.4 and later).
const RECEIVE_BYTES: usize = 64 * 1024;

/// The kernel answers at once, or waits for a transaction of another writer. Five seconds is far above both.
const RECEIVE_TIMEOUT_S: i64 = 5;

const MESSAGE_HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;

const SUBSYSTEM: u16 = short(libc::NFNL_SUBSYS_NFTABLES) << 8;
const DONE: u16 = short(libc::NLMSG_DONE);
const ERROR: u16 = short(libc::NLMSG_ERROR);

/// Headers have 16 bits for what libc keeps as `int`.
const fn short(value: libc::c_int) -> u16 {
    let [low, high, ..] = value.to_le_bytes();
    u16::from_le_bytes([low, high])
}

pub(super) struct NfTables {
    socket: Socket,
    sequence: u32,
    buffer: Box<[u8]>,
}

/// How a dump ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dump {
    Complete,
    /// The rules changed meanwhile (`NLM_F_DUMP_INTR`): what was seen may mix two rulesets.
    Interrupted,
    /// The caller had enough.
    Stopped,
}

/// One message of nf_tables.
pub(super) struct Message<'a> {
    /// `NFT_MSG_*`
    pub kind: i32,
    /// `NFPROTO_*` of the table.
    pub family: u8,
    /// Attributes.
    pub body: &'a [u8],
    /// With its headers, as received.
    #[cfg(test)]
    pub raw: &'a [u8],
}

impl NfTables {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(RECEIVE_TIMEOUT_S))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; RECEIVE_BYTES].into_boxed_slice() })
    }

    /// Asks for `message` (`NFT_MSG_GET*`) with these attributes and hands every answer to `each`.
    pub(super) fn request(
        &mut self,
        message: i32,
        family: u8,
        attributes: &[(u16, &str)],
        dump: bool,
        each: &mut dyn FnMut(&Message<'_>) -> ControlFlow<()>,
    ) -> io::Result<Dump> {
        self.send(message, family, attributes, dump)?;
        let mut interrupted = false;
        loop {
            let received = self.socket.recv(&mut &mut self.buffer[..], 0)?;
            for (header, raw) in Messages(self.buffer.get(..received).unwrap_or_default()) {
                if header.sequence != self.sequence {
                    continue;
                }
                interrupted |= header.flags & short(libc::NLM_F_DUMP_INTR) != 0;
                if let Some(end) = end_of_answer(header.kind, raw)? {
                    return Ok(if interrupted { Dump::Interrupted } else { end });
                }
                if let Some(message) = message_of(header.kind, raw)
                    && each(&message).is_break()
                {
                    return Ok(Dump::Stopped);
                }
                if !dump {
                    return Ok(Dump::Complete);
                }
            }
        }
    }

    fn send(&mut self, message: i32, family: u8, attributes: &[(u16, &str)], dump: bool) -> io::Result<()> {
        self.sequence += 1;
        let flags = libc::NLM_F_REQUEST | if dump { libc::NLM_F_DUMP } else { 0 };
        let mut request = Vec::with_capacity(128);
        request.extend_from_slice(&0u32.to_ne_bytes());
        request.extend_from_slice(&(SUBSYSTEM | short(message)).to_ne_bytes());
        request.extend_from_slice(&short(flags).to_ne_bytes());
        request.extend_from_slice(&self.sequence.to_ne_bytes());
        request.extend_from_slice(&0u32.to_ne_bytes());
        // struct nfgenmsg: family, version 0, resource id 0.
        request.extend_from_slice(&[family, 0, 0, 0]);
        for (kind, name) in attributes {
            let mut value = name.as_bytes().to_vec();
            value.push(0);
            attribute::push(&mut request, *kind, &value);
        }
        let length = u32::try_from(request.len()).expect("a request is a few hundred bytes");
        request[..4].copy_from_slice(&length.to_ne_bytes());
        self.socket.send(&request, 0).map(|_| ())
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// Splits a datagram (or a recording of several) into messages with their headers.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..MESSAGE_HEADER_BYTES)?;
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let message = self.0.get(..length).filter(|message| message.len() >= MESSAGE_HEADER_BYTES)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let sequence = u32::from_ne_bytes(header[8..12].try_into().ok()?);
        Some((Header { kind, flags, sequence }, message))
    }
}

/// The messages of nf_tables in recorded bytes.
#[cfg(test)]
pub(super) fn recorded(bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    Messages(bytes).filter_map(|(header, raw)| message_of(header.kind, raw))
}

fn message_of(kind: u16, raw: &[u8]) -> Option<Message<'_>> {
    if kind & 0xff00 != SUBSYSTEM {
        return None;
    }
    let generic = raw.get(MESSAGE_HEADER_BYTES..MESSAGE_HEADER_BYTES + GENERIC_HEADER_BYTES)?;
    Some(Message {
        kind: i32::from(kind & 0xff),
        family: generic[0],
        body: &raw[MESSAGE_HEADER_BYTES + GENERIC_HEADER_BYTES..],
        #[cfg(test)]
        raw,
    })
}

/// `NLMSG_DONE` and `NLMSG_ERROR` carry a negative errno, or zero.
fn end_of_answer(kind: u16, raw: &[u8]) -> io::Result<Option<Dump>> {
    if kind != DONE && kind != ERROR {
        return Ok(None);
    }
    let code = raw.get(MESSAGE_HEADER_BYTES..MESSAGE_HEADER_BYTES + 4);
    match code.and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes) {
        0 => Ok(Some(Dump::Complete)),
        // The kernel's own name for a dump that has to start again (nf_tables, Linux 3.18 and later).
        code if -code == libc::EINTR => Ok(Some(Dump::Interrupted)),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}
