//! The match bpf with a program of classic BPF (`xt_bpf.c`, Linux 6.18), which runs where the network header is the packet's
//! beginning. Programs of eBPF, which rules name by a path or a descriptor, are not shown by the rule.

use super::{Blob, Matched};
use crate::forwarding::bpf::{self, Ended, Instruction, Question, Reply};
use crate::forwarding::fact::Fact;
use crate::forwarding::machine::Run;
use crate::forwarding::packet::{Protocol, UnknownBytes};
use crate::forwarding::state::{Hook, Interface};

/// `XT_BPF_MAX_NUM_INSTR`
const MOST: usize = 64;

/// `struct sock_filter`, in bytes.
const INSTRUCTION_BYTES: usize = 8;

impl Run<'_> {
    /// `bpf_mt`, `bpf_mt_v1`
    pub(super) fn bpf(&mut self, revision: u32, blob: Blob<'_>) -> Option<Matched> {
        let program = program(revision, blob)?;
        let ended = bpf::run(&program, &|question| self.reply(question))?;
        Some(match ended {
            Ended::Value(value) => Matched::from(value != 0),
            // What two programs make of one unknown is not the same.
            Ended::Unknown(why) => {
                let question = format!("the rule's BPF program takes the packet, although {why}");
                Matched::from(self.decide_afresh(&question))
            }
        })
    }

    fn reply(&self, question: Question) -> Reply {
        match question {
            // Headers are taken to lie in one piece, as drivers deliver them.
            Question::Bytes { at, bytes } | Question::Network { at, bytes } => self.of_packet(at, bytes),
            Question::Link { at, bytes } => self.of_link(at, bytes),
            Question::Length => Reply::Value(self.packet.length),
            Question::Ancillary(which) => self.beside(which),
        }
    }

    fn of_packet(&self, at: u32, bytes: u32) -> Reply {
        if u64::from(at) + u64::from(bytes) > u64::from(self.packet.length) {
            return Reply::Nothing;
        }
        let (at, bytes) = (at as usize, bytes as usize);
        let is_unknown = |unknown: &&UnknownBytes| unknown.offset < at + bytes && unknown.offset + unknown.bytes > at;
        if let Some(unknown) = self.packet.unknown.iter().find(is_unknown) {
            return Reply::Unknown(format!("{} is not known", unknown.why));
        }
        match self.packet.bytes.get(at..at + bytes) {
            Some(found) => Reply::Value(number(found)),
            None => Reply::Unknown("it loads bytes behind those that are known".into()),
        }
    }

    /// The Ethernet header, and the packet behind it.
    fn of_link(&self, at: u32, bytes: u32) -> Reply {
        let header = self.packet.link.len();
        let (at, bytes) = (at as usize, bytes as usize);
        match self.packet.link.get(at..at + bytes) {
            Some(found) => Reply::Value(number(found)),
            None if header > 0 && at >= header => {
                self.of_packet(u32::try_from(at - header).unwrap_or(u32::MAX), u32::try_from(bytes).unwrap_or(u32::MAX))
            }
            None => Reply::Unknown("its Ethernet header is not known".into()),
        }
    }

    /// `SKF_AD_*`
    fn beside(&self, which: u32) -> Reply {
        let known = |fact: Fact<u32>| match fact {
            Fact::Known(value) => Reply::Value(value),
            Fact::Unknown(why) => Reply::Unknown(why),
        };
        match which {
            // Protocol, packet type, mark.
            0 => Reply::Value(if self.packet.protocol == Protocol::Ipv4 { 0x0800 } else { 0x86dd }),
            4 => known(self.packet.kind.clone().map(u32::from)),
            20 => known(self.packet.mark.clone()),
            // Index and kind of the device.
            8 | 28 => match self.device() {
                Some(device) => Reply::Value(if which == 8 { device.index } else { u32::from(device.hardware) }),
                None => Reply::Unknown("the device of a packet that this host sends is not followed".into()),
            },
            which => Reply::Unknown(format!("it loads {}", words(which))),
        }
    }

    /// `skb->dev`: the one that the packet came in on, until it is about to leave.
    fn device(&self) -> Option<&Interface> {
        match self.hook {
            Hook::Prerouting | Hook::Input | Hook::Forward => self.input,
            Hook::Postrouting => self.output,
            Hook::Output | Hook::Ingress | Hook::Egress => None,
        }
    }
}

/// `struct xt_bpf_info`, and `xt_bpf_info_v1` where it holds a program itself (`XT_BPF_MODE_BYTECODE`).
fn program(revision: u32, blob: Blob<'_>) -> Option<Vec<Instruction>> {
    const OWN: u16 = 0;
    let (count, start) = match revision {
        0 => (blob.u16(0)?, 4),
        1 if blob.u16(0)? == OWN => (blob.u16(2)?, 8),
        _ => return None,
    };
    let count = usize::from(count);
    let instruction = |number: usize| {
        let at = start + number * INSTRUCTION_BYTES;
        let (if_true, if_false) = (blob.byte(at + 2)?, blob.byte(at + 3)?);
        Some(Instruction { code: blob.u16(at)?, if_true, if_false, constant: blob.u32(at + 4)? })
    };
    if count <= MOST { (0..count).map(instruction).collect() } else { None }
}

/// In network byte order; at most four bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// What is not read, in words.
fn words(which: u32) -> &'static str {
    match which {
        24 => "the queue of the device",
        32 => "the hash of the receiving device",
        36 => "the number of the processor",
        44 | 48 | 60 => "the tag of a VLAN",
        52 => "the offset of the payload",
        56 => "a random number",
        // `SKF_AD_NLATTR`, `SKF_AD_NLATTR_NEST`, and what is newer.
        _ => "what is not evaluated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_read_from_both_structures() {
        let instruction = [0x30, 0, 1, 2, 9, 0, 0, 0];
        let old = [&1_u16.to_ne_bytes()[..], &[0; 2], &instruction].concat();
        let new = [&0_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), &[0xff; 4], &instruction].concat();
        let read = vec![Instruction {
            code: u16::from_ne_bytes([0x30, 0]),
            if_true: 1,
            if_false: 2,
            constant: u32::from_ne_bytes([9, 0, 0, 0]),
        }];
        assert_eq!(program(0, Blob(&old)), Some(read.clone()));
        assert_eq!(program(1, Blob(&new)), Some(read));
        // Cut, of more than a rule may have, and one that is elsewhere.
        assert_eq!(program(0, Blob(&old[..10])), None);
        assert_eq!(program(0, Blob(&[65, 65])), None);
        assert_eq!(program(1, Blob(&[1, 1, 0, 0])), None);
    }
}
