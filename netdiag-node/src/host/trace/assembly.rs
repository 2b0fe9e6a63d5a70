//! Puts events together by packets, and keeps those of other people's traces out.
//!
//! A packet is ours from the event of our own rule on, by its number. The kernel makes that number of the packet's address
//! in memory and of its flow (`nft_trace_init`, `nft_trace_notify`), so a later packet of the same flow, which somebody else
//! traces, may get it again. Base chains tell it: a packet passes the hooks in their order once, so one that is back at an
//! earlier place is another.
//!
//! What a process sends to its own host comes back by loopback, and with another number, of which the interface is part. It
//! is known by its addresses and ports.

use std::collections::HashMap;

use netdiag_common::forwarding::conntrack::Tuple;
use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::state::{BaseChain, ChainKey, ChainKind, Family, Hook};
use netdiag_common::observation::trace::{TraceEvent, TraceKind, TracedPacket};

use super::batch::{CHAINS, Chain, PRIORITY, TABLE};
use super::event::Traced;

/// Events of one answer. 64 packets through a long ruleset of iptables have a few thousand.
const MAX_EVENTS: usize = 4096;

/// `LOOPBACK_IFINDEX`, in every namespace.
const LOOPBACK: u32 = 1;

/// A place on the way: hook and priority.
type Place = (u8, i32);

pub(super) struct Assembly {
    family: Family,
    base: HashMap<ChainKey, BaseChain>,
    /// Packets that the kernel marks.
    limit: u8,
    marked: u64,
    packets: Vec<TracedPacket>,
    /// By number.
    open: HashMap<u32, Open>,
    kept: usize,
    left_out: u64,
}

/// A packet that is on its way.
struct Open {
    index: usize,
    /// Where it was seen last.
    hook: Hook,
    place: Place,
    chain: String,
    /// As it was seen last.
    headers: Option<Tuple>,
    /// It leaves by loopback.
    is_local: bool,
}

impl Assembly {
    pub(super) fn new(family: Family, base: Vec<BaseChain>, limit: u8) -> Self {
        let base = base.into_iter().map(|chain| (chain.key.clone(), chain)).collect();
        let (packets, open) = (Vec::new(), HashMap::new());
        Self { family, base, limit, marked: 0, packets, open, kept: 0, left_out: 0 }
    }

    /// Whether the kernel marks no further packet.
    pub(super) fn is_full(&self) -> bool {
        self.marked >= u64::from(self.limit)
    }

    /// Packets, and the events that were not kept.
    pub(super) fn finish(self) -> (Vec<TracedPacket>, u64) {
        (self.packets, self.left_out)
    }

    /// None is an event that was not understood.
    pub(super) fn feed(&mut self, traced: Option<Traced>) {
        let Some(Traced { id, mut event }) = traced else {
            self.left_out += 1;
            return;
        };
        let is_own = event.family == self.family && event.table == TABLE;
        let key =
            ChainKey { family: event.family, table: event.table.as_str().into(), chain: event.chain.as_str().into() };
        let base = self.base.get(&key).map(|base| (base.hook, base.priority, place(base)));
        let chain = CHAINS.iter().find(|chain| is_own && chain.name == event.chain);
        if base.is_some_and(|(hook, ..)| hook == Hook::Prerouting) || chain.is_some_and(|chain| chain.receives) {
            self.take_back(id, &event);
        }
        if is_own {
            // The end of our own chains says nothing.
            if let Some(chain) = chain.filter(|_| event.kind == TraceKind::Rule && event.handle.is_some()) {
                self.begin(id, chain, &event);
            }
            return;
        }
        let Some(open) = self.open.get_mut(&id) else { return };
        if let Some((hook, priority, place)) = base {
            (event.hook, event.priority) = (Some(hook), Some(priority));
            // The first event of a pass through a base chain has the packet's headers, and is in the base chain itself.
            if event.headers.is_some() {
                let is_behind = place > open.place || place == open.place && open.chain != event.chain;
                if !is_behind {
                    self.open.remove(&id);
                    return;
                }
                (open.hook, open.place, open.chain) = (hook, place, event.chain.clone());
                open.headers.clone_from(&event.headers);
                open.is_local |= event.output == Some(LOOPBACK);
            }
        }
        let index = open.index;
        if matches!(event.verdict, Verdict::Drop | Verdict::Stolen) {
            self.open.remove(&id);
        }
        if self.kept >= MAX_EVENTS {
            self.left_out += 1;
            return;
        }
        self.kept += 1;
        self.packets[index].events.push(event);
    }

    /// Our own rule has marked a packet, or one that comes back by loopback once more.
    fn begin(&mut self, id: u32, chain: &Chain, event: &TraceEvent) {
        self.marked += 1;
        let (hook, place) = mark(chain.receives);
        let known = self.open.get(&id).filter(|open| open.place == place);
        // Only the first event of a pass through a chain has headers: this is the second of our rules that the packet meets.
        let is_again = event.headers.is_none() || chain.receives && known.is_some_and(|open| open.is_local);
        if known.is_some() && is_again {
            return;
        }
        let index = self.packets.len();
        self.packets.push(TracedPacket { id, direction: chain.direction, events: Vec::new() });
        let (headers, is_local) = (event.headers.clone(), event.output == Some(LOOPBACK));
        self.open.insert(id, Open { index, hook, place, chain: String::new(), headers, is_local });
    }

    /// Gives a packet that comes back by loopback its new number.
    fn take_back(&mut self, id: u32, event: &TraceEvent) {
        if event.input != Some(LOOPBACK) || event.headers.is_none() {
            return;
        }
        let is_back = |open: &Open| {
            let was_sent = matches!(open.hook, Hook::Output | Hook::Postrouting);
            was_sent && open.is_local && open.headers == event.headers
        };
        // The one that was sent first.
        let first = self.open.iter().filter(|(_, open)| is_back(open)).min_by_key(|(_, open)| open.index);
        let Some(number) = first.map(|(number, _)| *number) else { return };
        if let Some(mut open) = self.open.remove(&number) {
            (open.hook, open.place) = mark(true);
            open.chain.clear();
            self.open.insert(id, open);
        }
    }
}

/// Where our own chains are.
fn mark(receives: bool) -> (Hook, Place) {
    let hook = if receives { Hook::Prerouting } else { Hook::Output };
    (hook, (order(hook), PRIORITY))
}

/// Chains that translate are called at the places of translation, whatever their own priority (`nf_nat_ipv4_ops`).
fn place(base: &BaseChain) -> Place {
    let priority = match (base.kind, base.hook) {
        (ChainKind::Nat, Hook::Prerouting | Hook::Output) => -100,
        (ChainKind::Nat, _) => 100,
        _ => base.priority,
    };
    (order(base.hook), priority)
}

fn order(hook: Hook) -> u8 {
    match hook {
        Hook::Ingress => 0,
        Hook::Prerouting | Hook::Output => 1,
        Hook::Input | Hook::Forward => 2,
        Hook::Postrouting => 3,
        Hook::Egress => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(name: &str, hook: Hook, priority: i32) -> BaseChain {
        let key = ChainKey { family: Family::Ip, table: "t".into(), chain: name.into() };
        BaseChain { key, kind: ChainKind::Filter, hook, priority, policy: Verdict::Accept, made: (1, 1) }
    }

    fn traced(id: u32, table: &str, chain: &str, input: Option<u32>) -> Traced {
        let any = "10.0.0.1".parse().unwrap();
        let headers = Tuple { source: any, destination: any, protocol: 17, source_port: 1, destination_port: 2 };
        let event = TraceEvent {
            family: Family::Ip,
            table: table.to_owned(),
            chain: chain.to_owned(),
            kind: TraceKind::Rule,
            hook: None,
            priority: None,
            handle: Some(2),
            verdict: Verdict::Continue,
            mark: 0,
            input,
            output: matches!(chain, "original-out" | "out" | "post").then_some(LOOPBACK),
            headers: Some(headers),
            connection: None,
        };
        Traced { id, event }
    }

    fn assembly() -> Assembly {
        let chains = vec![
            base("raw", Hook::Prerouting, -300),
            base("out", Hook::Output, 0),
            base("in", Hook::Input, 0),
            base("post", Hook::Postrouting, 0),
        ];
        Assembly::new(Family::Ip, chains, 2)
    }

    fn chains(packet: &TracedPacket) -> Vec<&str> {
        packet.events.iter().map(|event| &*event.chain).collect()
    }

    #[test]
    fn only_packets_that_our_rule_marked_are_ours() {
        let mut assembly = assembly();
        assembly.feed(Some(traced(8, "t", "raw", Some(3))));
        assembly.feed(Some(traced(7, TABLE, "original-in", Some(3))));
        assembly.feed(Some(traced(7, "t", "raw", Some(3))));
        assembly.feed(Some(traced(8, "t", "in", Some(3))));
        assembly.feed(Some(traced(7, "t", "in", Some(3))));
        let (packets, left_out) = assembly.finish();
        assert_eq!((packets.len(), chains(&packets[0]), left_out), (1, vec!["raw", "in"], 0));
        assert_eq!((packets[0].events[0].hook, packets[0].events[0].priority), (Some(Hook::Prerouting), Some(-300)));
    }

    #[test]
    fn a_number_that_comes_again_is_another_packet() {
        let mut assembly = assembly();
        assembly.feed(Some(traced(7, TABLE, "original-in", Some(3))));
        assembly.feed(Some(traced(7, "t", "raw", Some(3))));
        assembly.feed(Some(traced(7, "t", "in", Some(3))));
        // Somebody else traces the next one, which our limit left out.
        assembly.feed(Some(traced(7, "t", "raw", Some(3))));
        assembly.feed(Some(traced(7, "t", "in", Some(3))));
        assert_eq!(chains(&assembly.finish().0[0]), ["raw", "in"]);
    }

    #[test]
    fn what_comes_back_by_loopback_is_the_same_packet() {
        let mut assembly = assembly();
        assembly.feed(Some(traced(7, TABLE, "original-out", None)));
        assembly.feed(Some(traced(7, "t", "out", None)));
        assembly.feed(Some(traced(7, "t", "post", None)));
        assembly.feed(Some(traced(9, TABLE, "original-in", Some(LOOPBACK))));
        assembly.feed(Some(traced(9, "t", "raw", Some(LOOPBACK))));
        assembly.feed(Some(traced(9, "t", "in", Some(LOOPBACK))));
        assert!(assembly.is_full());
        let (packets, _) = assembly.finish();
        assert_eq!(packets.len(), 1);
        assert_eq!(chains(&packets[0]), ["out", "post", "raw", "in"]);
    }

    #[test]
    fn what_comes_back_translated_is_known_by_its_last_headers() {
        let mut assembly = assembly();
        let translated = |chain, input| {
            let mut traced = traced(9, "t", chain, input);
            traced.event.headers.as_mut().unwrap().destination_port = 8080;
            traced
        };
        assembly.feed(Some(traced(7, TABLE, "original-out", None)));
        let post = translated("post", None);
        assembly.feed(Some(Traced { id: 7, ..post }));
        // Our rule does not know it any more. Somebody else's is another.
        assembly.feed(Some(traced(8, "t", "raw", Some(LOOPBACK))));
        assembly.feed(Some(translated("raw", Some(LOOPBACK))));
        assembly.feed(Some(translated("in", Some(LOOPBACK))));
        // It has arrived: what looks like it is another one.
        assembly.feed(Some(translated("raw", Some(LOOPBACK))));
        let (packets, _) = assembly.finish();
        assert_eq!(chains(&packets[0]), ["post", "raw", "in"]);
    }

    #[test]
    fn a_packet_that_two_of_our_rules_mark_is_one() {
        let mut assembly = assembly();
        let mut second = traced(7, TABLE, "original-in", Some(3));
        second.event.headers = None;
        assembly.feed(Some(traced(7, TABLE, "original-in", Some(3))));
        assembly.feed(Some(second));
        assembly.feed(Some(traced(7, "t", "raw", Some(3))));
        assert!(assembly.is_full());
        assert_eq!(assembly.finish().0.len(), 1);
    }

    #[test]
    fn events_beyond_the_limit_are_counted() {
        let mut assembly = assembly();
        assembly.feed(Some(traced(7, TABLE, "original-in", Some(3))));
        for _ in 0..MAX_EVENTS + 3 {
            assembly.feed(Some(traced(7, "t", "jumped to", None)));
        }
        assembly.feed(None);
        let (packets, left_out) = assembly.finish();
        assert_eq!((packets[0].events.len(), left_out), (MAX_EVENTS, 4));
    }
}
