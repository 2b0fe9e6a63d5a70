//! One run: the registers, the packet and all that expressions read and change, and the execution of one expression.

mod bits;
mod connection;
mod exthdr;
mod lookup;
mod meta;
mod offload;
mod payload;
mod queue;
mod socket;
mod statement;

use std::net::IpAddr;
use std::sync::Arc;

pub(super) use self::exthdr::extension_header;
pub(super) use self::queue::FOLLOWED_QUEUES;
pub(super) use self::socket::{PacketSocket, has_socket};
use super::bridge::Between;
use super::choice::Choices;
use super::conntrack::{Entry, State, Tuple};
use super::expression::{Data, Expression, Verdict};
use super::fact::Fact;
use super::packet::Packet;
use super::path::{Assumption, Decision, End, FoundElement, Place, Reject};
use super::recent::RecentChange;
use super::register::{KNOWN, Loaded, Reason, Registers, UNWRITTEN, VERDICT};
use super::set::Element;
use super::state::{ChainKey, Hook, Interface, Key, Route, RuleState, SetKey};
use super::without::Without;

/// Why a run ends before its last hook.
pub(super) enum Stop {
    Missing(Key),
    End(End),
}

impl From<Key> for Stop {
    fn from(key: Key) -> Self {
        Self::Missing(key)
    }
}

pub(super) type Result<T> = std::result::Result<T, Stop>;

pub(super) struct Run<'a> {
    pub state: &'a RuleState,
    /// Rules that are taken not to be there.
    pub without: &'a Without,
    pub packet: Packet,
    pub tracking: Tracking,
    pub hook: Hook,
    /// `skb->ipvs_property`: IPVS has dealt with the packet, and leaves it alone from here on.
    pub balanced: bool,
    pub input: Option<&'a Interface>,
    pub output: Option<&'a Interface>,
    /// Once it has passed a hook within a bridge.
    pub between: Option<Between<'a>>,
    /// What the routing decision said; none before it.
    pub route: Option<Route>,
    /// The chain and rule being executed.
    pub chain: Option<ChainKey>,
    pub handle: Option<u64>,
    pub registers: Registers,
    pub choices: Choices,
    pub decisions: Vec<Decision>,
    pub assumptions: Vec<Assumption>,
    pub gaps: Vec<String>,
    /// Elements that lookups of this rule found.
    pub found: Vec<FoundElement>,
    /// Set with [`Verdict::Drop`] when the sender is told.
    pub rejected: Option<Reject>,
    /// Set with [`Verdict::Queue`] when it is one of several: the first and the last.
    pub queues: Option<(u16, u16)>,
    /// Set with [`Verdict::Stolen`]: who has the packet now.
    pub stolen_by: Option<&'static str>,
    /// `skb->sk` of a received packet: set by a transparent proxy's rule.
    pub given_socket: Option<PacketSocket>,
    /// What the packet itself changed in lists of the match recent, latest last.
    pub recent: Vec<(String, IpAddr, RecentChange)>,
    /// What the packet itself changed in sets, latest last.
    changed: Vec<(SetKey, Vec<u8>, Option<Arc<Element>>)>,
    /// What symhash gave of which addresses and ports, by which modulus.
    hashed: Vec<(Tuple, u32, u32)>,
    /// By [`Reason`].
    reasons: Vec<Arc<str>>,
}

/// What connection tracking has attached to the packet.
#[derive(Debug, Clone)]
pub(super) enum Tracking {
    /// It has not looked yet.
    Unseen,
    /// A rule gave it a zone before it looked.
    Template {
        zone: u16,
    },
    Untracked,
    Invalid,
    Tracked(Box<TrackedEntry>),
    Unknown(String),
}

#[derive(Debug, Clone)]
pub(super) struct TrackedEntry {
    pub state: State,
    pub entry: Entry,
    /// It began with this packet.
    pub new: bool,
    pub unknown_ports: UnknownPorts,
}

/// Which ports address translation chose so that they cannot be foreseen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UnknownPorts {
    pub source: bool,
    pub destination: bool,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        state: &'a RuleState,
        without: &'a Without,
        packet: Packet,
        hook: Hook,
        choices: Choices,
    ) -> Self {
        Self {
            state,
            without,
            packet,
            tracking: Tracking::Unseen,
            hook,
            balanced: false,
            input: None,
            output: None,
            between: None,
            route: None,
            chain: None,
            handle: None,
            registers: Registers::default(),
            choices,
            decisions: Vec::new(),
            assumptions: Vec::new(),
            gaps: Vec::new(),
            found: Vec::new(),
            rejected: None,
            queues: None,
            stolen_by: None,
            given_socket: None,
            recent: Vec::new(),
            changed: Vec::new(),
            hashed: Vec::new(),
            reasons: vec!["".into(), "nothing was loaded into the register".into()],
        }
    }

    pub(super) fn place(&self) -> Place {
        Place { hook: self.hook, chain: self.chain.clone(), handle: self.handle }
    }

    pub(super) fn unknown(&self, because: impl Into<String>) -> Stop {
        Stop::End(End::Unknown { by: self.place(), because: because.into() })
    }

    /// Names something on the way that is not evaluated, once.
    pub(super) fn add_gap(&mut self, gap: impl Into<String>) {
        let gap = gap.into();
        if !self.gaps.contains(&gap) {
            self.gaps.push(gap);
        }
    }

    /// Executes one expression. [`Verdict::Continue`] leads to the next one, everything else ends the rule.
    pub(super) fn execute(&mut self, expression: &'a Expression) -> Result<Verdict> {
        match expression {
            Expression::Immediate { to: VERDICT, data: Data::Verdict(verdict) } => Ok(verdict.clone()),
            Expression::Immediate { to, data } => {
                if let Data::Value(value) = data {
                    self.registers.store(*to, value);
                }
                Ok(Verdict::Continue)
            }
            Expression::Payload { base, offset, bytes, to } => Ok(self.payload(*base, *offset, *bytes, *to)),
            Expression::PayloadWrite { base, offset, bytes, from } => {
                Ok(self.write_payload(*base, *offset, *bytes, *from))
            }
            Expression::Exthdr { source, kind, offset, bytes, presence, to } => {
                Ok(self.exthdr(*source, *kind, *offset, *bytes, *presence, *to))
            }
            Expression::ExthdrWrite { kind, offset, bytes, from: Some(from) } => {
                Ok(self.write_tcp_option(*kind, *offset as usize, *bytes as usize, *from))
            }
            Expression::ExthdrWrite { kind, from: None, .. } => Ok(self.remove_tcp_option(*kind)),
            Expression::Meta { key, to } => Ok(self.meta(*key, *to)),
            Expression::MetaSet { key, from } => Ok(self.set_meta(*key, *from)),
            Expression::Ct { key, direction, to } => Ok(self.ct(*key, *direction, *to)),
            Expression::CtSet { key, from, .. } => Ok(self.set_ct(*key, *from)),
            Expression::Notrack => Ok(self.notrack()),
            Expression::Compare { from, operator, value } => Ok(self.compare(*from, *operator, value)),
            Expression::Range { from, negated, first, last } => Ok(self.range(*from, *negated, first, last)),
            Expression::Bitwise { from, to, bytes, operation } => Ok(self.bitwise(*from, *to, *bytes, operation)),
            Expression::Byteorder { from, to, bytes, size } => Ok(self.byteorder(*from, *to, *bytes, *size)),
            Expression::Lookup { set, from, to, negated } => self.lookup(set, *from, *to, *negated),
            Expression::Dynset { .. } => self.dynset(expression),
            Expression::ObjectMap { set, from } => self.object_map(set, *from),
            Expression::Counter { .. } | Expression::Last | Expression::Log | Expression::Duplicate => {
                Ok(Verdict::Continue)
            }
            _ => self.statement(expression),
        }
    }

    /// Whether something unknown holds. The same question has the same answer throughout a run.
    pub(super) fn decide(&mut self, question: &str) -> bool {
        let before = self.assumptions.iter().find_map(|assumption| match assumption {
            Assumption::Unknown { what, holds, .. } if what == question => Some(*holds),
            _ => None,
        });
        before.unwrap_or_else(|| self.decide_afresh(question))
    }

    /// Whether something holds that may be different each time it is asked: a limit may have been used up in between.
    pub(super) fn decide_afresh(&mut self, question: &str) -> bool {
        let holds = self.choices.choose(2) == 0;
        self.assumptions.push(Assumption::Unknown { at: self.place(), what: question.into(), holds });
        holds
    }

    /// One of `0..modulus`, each as likely as the others.
    pub(super) fn draw(&mut self, what: &str, modulus: u32) -> u32 {
        if modulus <= 1 {
            return 0;
        }
        let value = self.choices.choose(modulus);
        let at = self.place();
        let chance = 1.0 / f64::from(modulus);
        self.assumptions.push(Assumption::Chance { at, what: what.into(), values: vec![value], chance });
        value
    }

    /// The place of one of these, each as likely as its weight is large.
    pub(super) fn draw_weighted(&mut self, what: &str, weights: &[u32]) -> usize {
        if weights.len() <= 1 {
            return 0;
        }
        let value = self.choices.choose(u32::try_from(weights.len()).unwrap_or(u32::MAX));
        let taken = value as usize;
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let chance = f64::from(weights[taken]) / total;
        let at = self.place();
        self.assumptions.push(Assumption::Chance { at, what: what.into(), values: vec![value], chance });
        taken
    }

    /// True with the given chance.
    pub(super) fn draw_with(&mut self, what: &str, chance: f64) -> bool {
        let holds = self.choices.choose(2) == 0;
        let chance = if holds { chance } else { 1.0 - chance };
        let at = self.place();
        self.assumptions.push(Assumption::Chance { at, what: what.into(), values: vec![u32::from(holds)], chance });
        holds
    }

    /// The number of a reason, for bytes in registers.
    pub(super) fn reason(&mut self, why: &str) -> Reason {
        let known = self.reasons.iter().skip(1).position(|reason| &**reason == why);
        let index = known.map_or(self.reasons.len(), |at| at + 1);
        if index == self.reasons.len() {
            self.reasons.push(why.into());
        }
        // A rule has at most 128 expressions (`NFT_RULE_MAXEXPRS`); reasons are as many, times the rules that meet one.
        Reason::try_from(index).unwrap_or(UNWRITTEN)
    }

    pub(super) fn words(&self, reason: Reason) -> Arc<str> {
        self.reasons.get(usize::from(reason)).cloned().unwrap_or_default()
    }

    /// Why the first unknown of these bytes is not known.
    fn why(&self, loaded: Loaded<'_>) -> Arc<str> {
        let reason = loaded.reasons.iter().find(|reason| **reason != KNOWN);
        self.words(reason.copied().unwrap_or(UNWRITTEN))
    }

    fn store_fact<const N: usize>(&mut self, to: u32, fact: Fact<[u8; N]>) -> Verdict {
        match fact {
            Fact::Known(value) => self.registers.store(to, &value),
            Fact::Unknown(why) => self.store_unknown(to, N, &why),
        }
        Verdict::Continue
    }

    pub(super) fn store_unknown(&mut self, to: u32, bytes: usize, why: &str) {
        let reason = self.reason(why);
        self.registers.store_unknown(to, bytes, reason);
    }

    /// A number of the host from a register.
    pub(super) fn load_number(&self, from: u32) -> Fact<u32> {
        match self.registers.load(from, 4).known() {
            Ok(&[a, b, c, d]) => Fact::Known(u32::from_ne_bytes([a, b, c, d])),
            Ok(_) => Fact::Unknown("the register does not exist".into()),
            Err(reason) => Fact::Unknown(self.words(reason).to_string()),
        }
    }

    /// A number in network byte order, such as a port.
    pub(super) fn load_port(&self, from: u32) -> Fact<u16> {
        match self.registers.load(from, 2).known() {
            Ok(&[a, b]) => Fact::Known(u16::from_be_bytes([a, b])),
            Ok(_) => Fact::Unknown("the register does not exist".into()),
            Err(reason) => Fact::Unknown(self.words(reason).to_string()),
        }
    }
}
