//! The harvested counts as an observation: summed over the window asked for, named, and with their owners.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::kfree_skb::{DropAccounts, DropExemplar, DropGroup, DropTuple, Drops, ReasonTotal};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_common::record::kfree_skb::{Exemplar, REASONS, row_reason};
use netdiag_common::{Gap, GapReason, Window};

use super::counted::{GroupCount, sum};
use super::exemplar::frames;
use super::key::{GroupKey, Level, address, translation};
use super::{KernelDrops, hook};
use crate::window::Total as _;

/// Groups and exemplars in one observation: a few hundred KiB of JSON at most.
const ANSWER_GROUPS: usize = 500;
const ANSWER_EXEMPLARS: usize = 64;

const SECOND_NS: u64 = 1_000_000_000;

impl KernelDrops {
    /// What was harvested in the window. `resolve` says whose namespace a cookie (an inode before Linux 5.12) is: on a
    /// kernel shared by several nodes the others' are unknown, and their packets become one number.
    pub fn observe(&self, now: Timestamp, window: Window, resolve: &dyn Fn(u64) -> Owner) -> Drops {
        let clock = Clock { wall: self.harvested.1.unwrap_or(now), monotonic_ns: self.harvested.0 };
        let span_ns = window.seconds() * SECOND_NS;
        let mut owners = Owners { resolve, known: HashMap::new() };
        let mut accounts = DropAccounts::default();
        let mut by_reason = vec![0; REASONS];
        let mut totals: HashMap<GroupKey, GroupCount> = HashMap::new();
        let mut since_ns = None;
        for slot in self.history.view(span_ns) {
            since_ns = since_ns.or(Some(slot.start_ns));
            sum(&mut accounts, &slot.value.accounts);
            by_reason.iter_mut().zip(&slot.value.by_reason).for_each(|(sum, packets)| *sum += packets);
            for (key, counted) in slot.value.groups() {
                totals.entry(*key).or_default().add(counted.clone());
            }
        }
        totals.retain(|key, counted| {
            let ours = owners.ours(key.netns);
            if !ours && let Some(counted_as) = packet_term(&mut accounts, key.level) {
                // If a counter lied, the identity says so; nothing here may panic over it.
                *counted_as = counted_as.saturating_sub(counted.count.packets);
                accounts.foreign_netns += counted.count.packets;
            }
            ours
        });
        let mut groups: Vec<(GroupKey, GroupCount)> = totals.into_iter().collect();
        groups.sort_by_key(|(key, counted)| {
            (std::cmp::Reverse(counted.weight()), key.netns, key.reason, key.location, key.ifindex)
        });
        let omitted_groups = groups.len().saturating_sub(ANSWER_GROUPS) as u64;
        groups.truncate(ANSWER_GROUPS);
        for netns in self.exemplars.namespaces() {
            owners.of(netns);
        }
        let since = clock.at(since_ns.unwrap_or(self.harvested.0));
        let from_ns = self.harvested.0.saturating_sub(span_ns);
        let exemplars = self
            .exemplars
            .pick(ANSWER_EXEMPLARS, |exemplar| exemplar.at_ns >= from_ns && owners.is_known_ours(exemplar.netns));
        Drops {
            since,
            window_s: now.duration_since(since).as_secs_f64().max(0.0),
            accounts,
            reasons: self.reason_totals(&by_reason),
            groups: groups.iter().map(|(key, counted)| self.group(key, counted, clock, &mut owners)).collect(),
            omitted_groups,
            exemplars: exemplars.into_iter().map(|exemplar| self.exemplar(exemplar, clock, &owners)).collect(),
            unseen: self.unseen(),
            forgotten_sights: self.first_seen.forgotten(),
        }
    }

    pub(super) fn reason_totals(&self, by_reason: &[u64]) -> Vec<ReasonTotal> {
        let mut totals: Vec<ReasonTotal> = by_reason
            .iter()
            .enumerate()
            .filter(|(_, packets)| **packets > 0)
            .map(|(row, packets)| ReasonTotal {
                reason: row_reason(row).map_or_else(|| "OTHER".to_owned(), |reason| self.reasons.name(reason)),
                packets: *packets,
            })
            .collect();
        totals.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.reason.cmp(&b.reason)));
        totals
    }

    fn group(&self, key: &GroupKey, counted: &GroupCount, clock: Clock, owners: &mut Owners<'_>) -> DropGroup {
        DropGroup {
            netns: owners.of(key.netns).clone(),
            reason: self.reasons.name(key.reason),
            location: self.names.location(key.location),
            ifindex: key.ifindex,
            direction: Some(key.direction()),
            hook: self.hooks.of(key),
            tuple: key.tuple.map(|tuple| DropTuple {
                source: tuple.source,
                destination: tuple.destination,
                protocol: Protocol::from_number(tuple.protocol),
                protocol_number: tuple.protocol,
                service_port: tuple.service_port,
                port_is_destination: tuple.port_is_destination,
            }),
            ether_type: match key.level {
                Level::Frame(ether_type) => Some(ether_type),
                Level::Full | Level::Coarse => None,
            },
            tracked: (self.loaded.has_conntrack && key.tuple.is_some()).then(|| key.is_tracked()),
            translation: counted.translation.as_deref().copied(),
            packets: counted.count.packets,
            bytes: counted.count.bytes,
            first_at: clock.at(counted.count.first_ns),
            last_at: clock.at(counted.count.last_ns),
            since: self.first_seen.first_ns(key).map(|first_ns| clock.at(first_ns)),
        }
    }

    fn exemplar(&self, exemplar: &Exemplar, clock: Clock, owners: &Owners<'_>) -> DropExemplar {
        let key = GroupKey::of(exemplar);
        let stack: Vec<String> = frames(exemplar).iter().map(|address| self.names.function(*address)).collect();
        DropExemplar {
            at: clock.at(exemplar.at_ns),
            netns: owners.known.get(&exemplar.netns).cloned().unwrap_or(Owner::Unknown { id: exemplar.netns }),
            reason: self.reasons.name(exemplar.reason),
            location: self.names.function(exemplar.location),
            ifindex: exemplar.ifindex,
            source: address(exemplar.version, exemplar.source),
            destination: address(exemplar.version, exemplar.destination),
            protocol_number: exemplar.protocol,
            source_port: exemplar.source_port,
            destination_port: exemplar.destination_port,
            tcp_flags: exemplar.tcp_flags,
            length: exemplar.length,
            direction: Some(key.direction()),
            hook: hook::of_stack(stack.iter().map(String::as_str)),
            tracked: self.loaded.has_conntrack.then(|| key.is_tracked()),
            translation: translation(exemplar),
            stack,
        }
    }

    /// What this kernel or our rights keep from us about every drop.
    fn unseen(&self) -> Vec<Gap> {
        let gap = |what: &str, reason, why: &str, remedy: &str| Gap {
            what: what.to_owned(),
            node: None,
            reason,
            why: why.to_owned(),
            remedy: remedy.to_owned(),
        };
        let mut unseen = Vec::new();
        if !self.reasons.are_reported() {
            unseen.push(gap(
                "why packets were dropped",
                GapReason::Kernel,
                "tracepoint kfree_skb passes no reason",
                "use Linux 5.17 or newer; until then the function tells most",
            ));
        }
        if !self.names.are_known() {
            unseen.push(gap(
                "names of the functions that dropped packets, and their netfilter hooks",
                GapReason::Rights,
                "/proc/kallsyms hides addresses",
                "add SYSLOG to securityContext.capabilities.add of the agent",
            ));
        }
        if !self.loaded.has_conntrack {
            unseen.push(gap(
                "conntrack entries of dropped packets: tracked or not, address before DNAT",
                GapReason::Kernel,
                "neither the kernel's BTF nor module nf_conntrack's described struct nf_conn when the agent started",
                "start the agent again when connection tracking is loaded",
            ));
        }
        unseen
    }
}

/// The term of the identity that a group's packets are in; none for frames, which are not told apart by node.
fn packet_term(accounts: &mut DropAccounts, level: Level) -> Option<&mut u64> {
    match level {
        Level::Full => Some(&mut accounts.attributed),
        Level::Coarse => Some(&mut accounts.coarse),
        Level::Frame(_) => None,
    }
}

/// Answers of `resolve`, each asked once.
struct Owners<'a> {
    resolve: &'a dyn Fn(u64) -> Owner,
    known: HashMap<u64, Owner>,
}

impl Owners<'_> {
    fn of(&mut self, netns: u64) -> &Owner {
        let resolve = self.resolve;
        self.known.entry(netns).or_insert_with(|| match netns {
            // No namespace at all: nobody can say whose it is, so it is kept and named as such.
            0 => Owner::Unknown { id: 0 },
            _ => resolve(netns),
        })
    }

    fn ours(&mut self, netns: u64) -> bool {
        netns == 0 || !matches!(self.of(netns), Owner::Unknown { .. })
    }

    fn is_known_ours(&self, netns: u64) -> bool {
        netns == 0 || self.known.get(&netns).is_some_and(|owner| !matches!(owner, Owner::Unknown { .. }))
    }
}

/// One moment on both clocks.
#[derive(Clone, Copy)]
struct Clock {
    wall: Timestamp,
    monotonic_ns: u64,
}

impl Clock {
    fn at(self, ns: u64) -> Timestamp {
        let past = self.monotonic_ns.cast_signed().saturating_sub(ns.cast_signed());
        self.wall.checked_sub(SignedDuration::from_nanos(past)).unwrap_or(self.wall)
    }
}
