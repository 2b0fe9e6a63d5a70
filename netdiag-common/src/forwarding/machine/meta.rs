//! What the kernel keeps beside the bytes of a packet (`nft_meta.c`).

use super::Run;
use crate::forwarding::expression::Verdict;
use crate::forwarding::fact::Fact;
use crate::forwarding::packet::{Protocol, Socket};
use crate::forwarding::state::{Hook, Interface};

/// `enum nft_meta_keys`
mod key {
    pub const LENGTH: u32 = 0;
    pub const PROTOCOL: u32 = 1;
    pub const PRIORITY: u32 = 2;
    pub const MARK: u32 = 3;
    pub const INPUT_INDEX: u32 = 4;
    pub const OUTPUT_INDEX: u32 = 5;
    pub const INPUT_NAME: u32 = 6;
    pub const OUTPUT_NAME: u32 = 7;
    pub const INPUT_TYPE: u32 = 8;
    pub const OUTPUT_TYPE: u32 = 9;
    pub const USER: u32 = 10;
    pub const GROUP: u32 = 11;
    pub const TRACE: u32 = 12;
    pub const NETWORK_PROTOCOL: u32 = 15;
    pub const TRANSPORT_PROTOCOL: u32 = 16;
    pub const PACKET_TYPE: u32 = 19;
    pub const INPUT_GROUP: u32 = 21;
    pub const OUTPUT_GROUP: u32 = 22;
    pub const CLASS: u32 = 23;
    pub const RANDOM: u32 = 24;
    pub const INPUT_KIND: u32 = 26;
    pub const OUTPUT_KIND: u32 = 27;
}

/// `IFNAMSIZ`
const NAME_BYTES: usize = 16;

impl Run<'_> {
    /// `nft_meta_get_eval`
    pub(super) fn meta(&mut self, key: u32, to: u32) -> Verdict {
        let (input, output) = (self.input, self.output);
        let ipv4 = self.packet.protocol == Protocol::Ipv4;
        match key {
            key::LENGTH => self.store_fact(to, Fact::Known(self.packet.length.to_ne_bytes())),
            key::PROTOCOL => {
                let number: u16 = if ipv4 { 0x0800 } else { 0x86dd };
                self.store_fact(to, Fact::Known(number.to_be_bytes()))
            }
            key::PRIORITY => self.store_fact(to, self.packet.priority.clone().map(u32::to_ne_bytes)),
            key::MARK => self.store_fact(to, self.packet.mark.clone().map(u32::to_ne_bytes)),
            // `NFPROTO_IPV4`, `NFPROTO_IPV6`
            key::NETWORK_PROTOCOL => self.store_fact(to, Fact::Known([if ipv4 { 2 } else { 10 }])),
            key::TRANSPORT_PROTOCOL => match self.packet.transport() {
                Some(transport) => self.store_fact(to, Fact::Known([transport.protocol])),
                None => Verdict::Break,
            },
            key::INPUT_INDEX => self.store_index(to, input),
            key::OUTPUT_INDEX => self.store_index(to, output),
            key::INPUT_NAME => self.store_fact(to, Fact::Known(name_of(input))),
            key::OUTPUT_NAME => self.store_fact(to, Fact::Known(name_of(output))),
            key::INPUT_TYPE => self.store_of(to, input, |interface| interface.hardware.to_ne_bytes()),
            key::OUTPUT_TYPE => self.store_of(to, output, |interface| interface.hardware.to_ne_bytes()),
            key::INPUT_GROUP => self.store_of(to, input, |interface| interface.group.to_ne_bytes()),
            key::OUTPUT_GROUP => self.store_of(to, output, |interface| interface.group.to_ne_bytes()),
            key::INPUT_KIND => self.store_kind(to, input),
            key::OUTPUT_KIND => self.store_kind(to, output),
            key::USER => self.of_socket(to, |socket| socket.uid.clone()),
            key::GROUP => self.of_socket(to, |socket| socket.gid.clone()),
            key::CLASS => self.of_socket(to, |socket| socket.class.clone()),
            key::PACKET_TYPE => self.store_fact(to, self.packet.kind.clone().map(|kind| [kind])),
            key::RANDOM => {
                // Each is another one.
                let number = self.reasons.len();
                self.store_unknown(to, 4, &format!("random number {number} of the kernel"));
                Verdict::Continue
            }
            key => {
                let (words, bytes) = unread(key);
                self.store_unknown(to, bytes, &words);
                Verdict::Continue
            }
        }
    }

    /// `nft_meta_set_eval`
    pub(super) fn set_meta(&mut self, key: u32, from: u32) -> Verdict {
        let value = self.load_number(from);
        match key {
            key::MARK => self.packet.mark = value,
            key::PRIORITY => self.packet.priority = value,
            key::PACKET_TYPE => self.packet.kind = value.map(|value| value.to_ne_bytes()[0]),
            // Tracing and the marks of security modules change nothing here.
            key::TRACE => {}
            _ => {}
        }
        Verdict::Continue
    }

    fn store_index(&mut self, to: u32, interface: Option<&Interface>) -> Verdict {
        self.store_fact(to, Fact::Known(interface.map_or(0, |interface| interface.index).to_ne_bytes()))
    }

    fn store_of<const N: usize>(
        &mut self,
        to: u32,
        interface: Option<&Interface>,
        of: impl Fn(&Interface) -> [u8; N],
    ) -> Verdict {
        match interface {
            Some(interface) => self.store_fact(to, Fact::Known(of(interface))),
            None => Verdict::Break,
        }
    }

    /// Interfaces that no link type made have no kind.
    fn store_kind(&mut self, to: u32, interface: Option<&Interface>) -> Verdict {
        match interface.and_then(|interface| interface.kind.as_deref()) {
            Some(kind) => self.store_fact(to, Fact::Known(padded(kind))),
            None => Verdict::Break,
        }
    }

    fn of_socket(&mut self, to: u32, of: impl Fn(&Socket) -> Fact<u32>) -> Verdict {
        // The stack looks for the socket before input, and may have found one (early demultiplexing).
        if self.hook == Hook::Input && matches!(self.packet.socket, Fact::Known(None)) {
            self.store_unknown(to, 4, "whether a socket of this host was already found for the packet");
            return Verdict::Continue;
        }
        match &self.packet.socket {
            Fact::Known(None) => Verdict::Break,
            Fact::Known(Some(socket)) => {
                let fact = of(socket).map(u32::to_ne_bytes);
                self.store_fact(to, fact)
            }
            Fact::Unknown(why) => {
                let why = why.clone();
                self.store_unknown(to, 4, &why);
                Verdict::Continue
            }
        }
    }
}

fn name_of(interface: Option<&Interface>) -> [u8; NAME_BYTES] {
    padded(interface.map_or("", |interface| &interface.name))
}

fn padded(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    // The last byte stays the end of the name.
    for (byte, letter) in bytes[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
        *byte = letter;
    }
    bytes
}

/// Keys that are not read, in words, with the bytes they write.
fn unread(key: u32) -> (String, usize) {
    let (words, bytes) = match key {
        13 => ("the routing realm", 4),
        14 => ("the security mark", 4),
        17 | 18 => ("the bridge", NAME_BYTES),
        20 => ("the processor", 4),
        25 => ("whether IPsec delivered the packet", 1),
        30 => ("the time", 8),
        31 => ("the day of the week", 1),
        32 => ("the time of day", 4),
        33 => ("the index of the VRF", 4),
        34 => ("the name of the VRF", NAME_BYTES),
        key => return (format!("meta key {key}"), 4),
    };
    (words.into(), bytes)
}
