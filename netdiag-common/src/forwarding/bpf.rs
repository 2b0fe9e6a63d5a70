//! Programs of classic BPF, as a socket filter or the match bpf of iptables runs them (`net/core/filter.c`, Linux 6.18).
//!
//! Jumps lead forward only, so that every program ends. What cannot be loaded ends it with 0, and so does a division by zero.

/// `BPF_MEMWORDS`
const MEMORY_WORDS: usize = 16;

/// `SKF_AD_OFF`, `SKF_NET_OFF`, `SKF_LL_OFF`: offsets from here on mean something else than bytes from the packet's start.
const ANCILLARY: i32 = -0x1000;
const NETWORK: i32 = -0x10_0000;
const LINK: i32 = -0x20_0000;

/// `SKF_AD_ALU_XOR_X`, which loads nothing.
const ANCILLARY_XOR: i32 = 40;

/// `struct sock_filter`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub constant: u32,
}

/// What a program asks of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// So many bytes at an offset from where the packet begins.
    Bytes {
        at: u32,
        bytes: u32,
    },
    /// The same from the network header, which may be behind that.
    Network {
        at: u32,
        bytes: u32,
    },
    /// From the link layer's header.
    Link {
        at: u32,
        bytes: u32,
    },
    Length,
    /// `SKF_AD_*`
    Ancillary(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Value(u32),
    /// There is no such thing, and the program ends with 0.
    Nothing,
    /// Why it is not known, as a clause.
    Unknown(String),
}

/// How a program ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    Value(u32),
    /// It loads what is not known.
    Unknown(String),
}

/// Why an instruction is the last one.
enum Stop {
    Ended(Ended),
    /// The kernel takes no program with it (`bpf_check_classic`).
    Refused,
}

struct Machine<'a> {
    accumulator: u32,
    index: u32,
    memory: [u32; MEMORY_WORDS],
    ask: &'a dyn Fn(Question) -> Reply,
}

/// Runs a program; none for one that the kernel would not have taken.
pub(super) fn run(program: &[Instruction], ask: &dyn Fn(Question) -> Reply) -> Option<Ended> {
    let mut machine = Machine { accumulator: 0, index: 0, memory: [0; MEMORY_WORDS], ask };
    let mut at = 0_usize;
    loop {
        match machine.execute(*program.get(at)?) {
            Ok(skipped) => at = at.checked_add(1)?.checked_add(skipped as usize)?,
            Err(Stop::Ended(ended)) => return Some(ended),
            Err(Stop::Refused) => return None,
        }
    }
}

impl Machine<'_> {
    /// Executes one instruction: how many behind it are skipped. Classes are `BPF_LD` to `BPF_MISC`.
    fn execute(&mut self, instruction: Instruction) -> Result<u32, Stop> {
        let Instruction { code, constant, .. } = instruction;
        if code > 0xff {
            return Err(Stop::Refused);
        }
        match code & 0x07 {
            0 => self.accumulator = self.load(code, constant)?,
            1 => self.index = self.load_index(code, constant)?,
            2 if code == 0x02 => *self.word(constant)? = self.accumulator,
            3 if code == 0x03 => *self.word(constant)? = self.index,
            4 => self.accumulator = self.calculate(code, constant)?,
            5 => return self.skipped(instruction),
            6 => return Err(self.end(code, constant)),
            7 => match code {
                0x07 => self.index = self.accumulator,
                0x87 => self.accumulator = self.index,
                _ => return Err(Stop::Refused),
            },
            _ => return Err(Stop::Refused),
        }
        Ok(0)
    }

    /// `BPF_LD` with its size and mode.
    fn load(&mut self, code: u16, constant: u32) -> Result<u32, Stop> {
        match code {
            // Constant, memory, length.
            0x00 => Ok(constant),
            0x60 => self.word(constant).copied(),
            0x80 => self.answer(Question::Length),
            // Words, halves and bytes, at a constant offset or behind the index.
            0x20 | 0x28 | 0x30 => self.load_at(constant.cast_signed(), size(code)),
            0x40 | 0x48 | 0x50 => {
                let at = self.index.wrapping_add(constant).cast_signed();
                self.answer(place(at, size(code)).ok_or_else(nothing)?)
            }
            _ => Err(Stop::Refused),
        }
    }

    /// `convert_bpf_extensions`: of offsets below zero, the first stand for what the kernel keeps beside the packet.
    fn load_at(&mut self, at: i32, bytes: u32) -> Result<u32, Stop> {
        if (ANCILLARY..0).contains(&at) {
            return match at - ANCILLARY {
                ANCILLARY_XOR => Ok(self.accumulator ^ self.index),
                which @ 0..64 if which % 4 == 0 => self.answer(Question::Ancillary(which.unsigned_abs())),
                _ => Err(Stop::Refused),
            };
        }
        self.answer(place(at, bytes).ok_or_else(nothing)?)
    }

    /// `BPF_LDX`; the last is four times the lower half of a byte, the length of an IPv4 header.
    fn load_index(&mut self, code: u16, constant: u32) -> Result<u32, Stop> {
        match code {
            0x01 => Ok(constant),
            0x61 => self.word(constant).copied(),
            0x81 => self.answer(Question::Length),
            0xb1 => {
                let byte = place(constant.cast_signed(), 1).ok_or_else(nothing)?;
                Ok((self.answer(byte)? & 0xf) << 2)
            }
            _ => Err(Stop::Refused),
        }
    }

    /// `BPF_ALU`
    fn calculate(&self, code: u16, constant: u32) -> Result<u32, Stop> {
        let with = if code & 0x08 == 0 { constant } else { self.index };
        let own = self.accumulator;
        Ok(match code & 0xf0 {
            0x00 => own.wrapping_add(with),
            0x10 => own.wrapping_sub(with),
            0x20 => own.wrapping_mul(with),
            0x30 => own.checked_div(with).ok_or_else(nothing)?,
            0x40 => own | with,
            0x50 => own & with,
            // Of the number of bits, the lower five count.
            0x60 => own.wrapping_shl(with),
            0x70 => own.wrapping_shr(with),
            0x80 if code == 0x84 => own.wrapping_neg(),
            0x90 => own.checked_rem(with).ok_or_else(nothing)?,
            0xa0 => own ^ with,
            _ => return Err(Stop::Refused),
        })
    }

    /// `BPF_JMP`
    fn skipped(&self, Instruction { code, if_true, if_false, constant }: Instruction) -> Result<u32, Stop> {
        let with = if code & 0x08 == 0 { constant } else { self.index };
        let holds = match code & 0xf0 {
            0x00 if code == 0x05 => return Ok(constant),
            0x10 => self.accumulator == with,
            0x20 => self.accumulator > with,
            0x30 => self.accumulator >= with,
            0x40 => self.accumulator & with != 0,
            _ => return Err(Stop::Refused),
        };
        Ok(u32::from(if holds { if_true } else { if_false }))
    }

    /// `BPF_RET`
    fn end(&self, code: u16, constant: u32) -> Stop {
        match code {
            0x06 => Stop::Ended(Ended::Value(constant)),
            0x16 => Stop::Ended(Ended::Value(self.accumulator)),
            _ => Stop::Refused,
        }
    }

    fn word(&mut self, number: u32) -> Result<&mut u32, Stop> {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        self.memory.get_mut(at).ok_or(Stop::Refused)
    }

    fn answer(&self, question: Question) -> Result<u32, Stop> {
        match (self.ask)(question) {
            Reply::Value(value) => Ok(value),
            Reply::Nothing => Err(nothing()),
            Reply::Unknown(why) => Err(Stop::Ended(Ended::Unknown(why))),
        }
    }
}

fn nothing() -> Stop {
    Stop::Ended(Ended::Value(0))
}

/// `BPF_W`, `BPF_H`, `BPF_B`, in bytes.
fn size(code: u16) -> u32 {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        _ => 1,
    }
}

/// `bpf_internal_load_pointer_neg_helper`; none for offsets that mean nothing.
fn place(at: i32, bytes: u32) -> Option<Question> {
    Some(match at {
        0.. => Question::Bytes { at: at.unsigned_abs(), bytes },
        NETWORK..0 => Question::Network { at: (at - NETWORK).unsigned_abs(), bytes },
        LINK..NETWORK => Question::Link { at: (at - LINK).unsigned_abs(), bytes },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instructions as `nfbpf_compile` and `tcpdump -ddd` write them: code, two jumps, constant.
    fn program(text: &str) -> Vec<Instruction> {
        let one = |line: &str| {
            let numbers: Vec<u32> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
            let [code, if_true, if_false, constant] = numbers[..] else { panic!("{line}") };
            let (code, if_true) = (u16::try_from(code).unwrap(), u8::try_from(if_true).unwrap());
            Instruction { code, if_true, if_false: u8::try_from(if_false).unwrap(), constant }
        };
        text.split(',').map(one).collect()
    }

    /// Of a packet with these bytes, of which the link layer's header and all that is beside it are not known.
    fn run_on(text: &str, packet: &[u8]) -> Option<Ended> {
        run(&program(text), &|question| match question {
            Question::Bytes { at, bytes } | Question::Network { at, bytes } => {
                let at = usize::try_from(at).unwrap();
                match packet.get(at..at + usize::try_from(bytes).unwrap()) {
                    Some(found) => Reply::Value(found.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))),
                    None => Reply::Nothing,
                }
            }
            Question::Length => Reply::Value(u32::try_from(packet.len()).unwrap()),
            Question::Link { .. } => Reply::Unknown("the link".into()),
            Question::Ancillary(which) => Reply::Unknown(format!("ancillary {which}")),
        })
    }

    fn value(text: &str, packet: &[u8]) -> u32 {
        match run_on(text, packet) {
            Some(Ended::Value(value)) => value,
            other => panic!("{text}: {other:?}"),
        }
    }

    /// `ip and tcp dst port 80` of raw IP packets: version, protocol, fragment, header length, port.
    const TO_PORT_80: &str = "48 0 0 0,84 0 0 240,21 0 9 64,48 0 0 9,21 0 7 6,40 0 0 6,69 5 0 8191,177 0 0 0,\
                              72 0 0 2,21 0 2 80,6 0 0 65535,6 0 0 0,6 0 0 0";

    #[test]
    fn a_filter_of_a_port_looks_behind_options() {
        let mut packet = vec![0; 28];
        (packet[0], packet[9], packet[23]) = (0x45, 6, 80);
        assert_eq!(value(TO_PORT_80, &packet), 65_535);
        // With four bytes of options the ports are elsewhere.
        packet[0] = 0x46;
        assert_eq!(value(TO_PORT_80, &packet), 0);
        (packet[23], packet[27]) = (0, 80);
        assert_eq!(value(TO_PORT_80, &packet), 65_535);
        packet[7] = 1;
        assert_eq!(value(TO_PORT_80, &packet), 0);
    }

    #[test]
    fn what_is_not_there_ends_with_nothing() {
        for load in ["32 0 0 1", "40 0 0 3", "48 0 0 4", "177 0 0 4", "48 0 0 4292870143"] {
            assert_eq!(value(&format!("{load},6 0 0 7"), &[1, 2, 3, 4]), 0, "{load}");
        }
        assert_eq!(value("1 0 0 4294967295,80 0 0 4,22 0 0 0", &[1, 2, 3, 4]), 4);
        assert_eq!(value("48 0 0 4293918723,22 0 0 0", &[1, 2, 3, 4]), 4);
    }

    #[test]
    fn numbers_are_calculated_as_the_kernel_does() {
        for (operation, expected) in [
            ("4 0 0 4294967295", 11),
            ("20 0 0 13", u32::MAX),
            ("36 0 0 5", 60),
            ("52 0 0 5", 2),
            ("148 0 0 5", 2),
            ("68 0 0 3", 15),
            ("84 0 0 8", 8),
            ("164 0 0 9", 5),
            ("100 0 0 2", 48),
            ("116 0 0 2", 3),
            ("132 0 0 0", 12_u32.wrapping_neg()),
            // By the index, which is 0; a shift counts its lower five bits.
            ("60 0 0 0", 0),
            ("156 0 0 0", 0),
            ("1 0 0 33,108 0 0 0", 24),
            // The index, the memory and back.
            ("7 0 0 0,0 0 0 1,12 0 0 0", 13),
            ("2 0 0 15,0 0 0 1,96 0 0 15", 12),
            ("1 0 0 3,3 0 0 2,97 0 0 2,135 0 0 0", 3),
            ("128 0 0 0", 4),
            ("129 0 0 0,135 0 0 0", 4),
            // `SKF_AD_ALU_XOR_X`
            ("1 0 0 6,32 0 0 4294963240", 10),
        ] {
            assert_eq!(value(&format!("0 0 0 12,{operation},22 0 0 0"), &[0; 4]), expected, "{operation}");
        }
    }

    #[test]
    fn jumps_compare_without_sign_and_lead_forward() {
        for (jump, taken) in [
            ("21 0 1 4294967295", true),
            ("37 0 1 4294967294", true),
            ("37 0 1 4294967295", false),
            ("53 0 1 4294967295", true),
            ("69 0 1 2147483648", true),
            ("29 0 1 0", false),
            ("5 0 0 1", false),
        ] {
            let expected = if taken { 1 } else { 2 };
            assert_eq!(value(&format!("0 0 0 4294967295,{jump},6 0 0 1,6 0 0 2"), &[]), expected, "{jump}");
        }
    }

    #[test]
    fn what_is_not_known_leaves_the_end_open() {
        let unknown = |text: &str| run_on(text, &[0; 4]);
        let mark = unknown("32 0 0 4294963220,6 0 0 1");
        assert_eq!(mark, Some(Ended::Unknown("ancillary 20".into())));
        assert_eq!(unknown("48 0 0 4292870144,6 0 0 1"), Some(Ended::Unknown("the link".into())));
    }

    #[test]
    fn what_the_kernel_does_not_take_is_no_program() {
        // Nothing, no end, a jump behind it, memory that is not there, return of the index, an unknown ancillary number.
        for text in
            ["0 0 0 1", "5 0 0 4294967295", "21 5 5 0,6 0 0 0", "96 0 0 16,6 0 0 0", "14 0 0 0", "32 0 0 4294963201"]
        {
            assert_eq!(run_on(text, &[0; 4]), None, "{text}");
        }
        assert_eq!(run(&[], &|_| Reply::Nothing), None);
    }

    #[test]
    fn any_program_ends() {
        // Numbers of xorshift (George Marsaglia), so that a failure comes again.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        for _ in 0..20_000 {
            let mut one = || {
                let [code, wide, if_true, if_false, constant @ ..] = next();
                // Seldom a code that has more than a byte.
                let code = u16::from_le_bytes([code, wide & (wide >> 4) & 1]);
                let constant = u32::from_le_bytes(constant);
                Instruction { code, if_true: if_true & 7, if_false: if_false & 7, constant }
            };
            let program: Vec<Instruction> = (0..24).map(|_| one()).collect();
            let ended = run(&program, &|question| match question {
                Question::Length => Reply::Value(1),
                Question::Ancillary(_) => Reply::Unknown("beside the packet".into()),
                _ => Reply::Nothing,
            });
            let is_known = matches!(&ended, None | Some(Ended::Value(_)));
            assert!(is_known || ended == Some(Ended::Unknown("beside the packet".into())), "{program:?}");
        }
    }
}
