//! Neighbours that do not answer, from the hooks `neigh_timer_handler` and `neigh_create`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use netdiag_common::observation::Owner;
use netdiag_common::observation::neighbour::{Failure, FailureAccounts, FailureKind, Failures};
use netdiag_common::observation::preflight::Check;
use netdiag_common::record::neighbour as record;
use netdiag_common::{Gap, Window};

use super::btf::Btf;
use super::event::{EventSize, Events, Hook, Names, Planned, names};
use super::object::{Object, Way};
use super::plan::Plan;
use super::{LoadError, layout};
use crate::host;

/// Groups of one namespace in one observation: some 50 KiB of JSON.
const ANSWER_GROUPS: usize = 300;

/// `NEIGH_VAR_UCAST_PROBES` (include/net/neighbour.h), the same since Linux 3.14.
const UNICAST_PROBES: u32 = 1;

pub(super) static NAMES: Names = names!("NEIGH");

pub(super) static HOOKS: [Hook; 2] = [
    Hook {
        tracepoint: "neigh_timer_handler",
        ways: ways!("neigh_timer_handler", "netdiag_neigh_timer", "netdiag_neigh_timer_raw"),
        lost: "how often and since when a neighbour does not answer",
    },
    Hook {
        tracepoint: "neigh_create",
        ways: ways!("neigh_create", "netdiag_neigh_create", "netdiag_neigh_create_raw"),
        lost: "which neighbours found no room in the table",
    },
];

/// The running programs and what they counted.
pub struct KernelNeighbours {
    events: Events,
    compared: Compared,
}

/// What the kernel counts by itself beside what its tracepoint showed: when many timers end at once, Linux 6.18 now and then
/// passes it by, whoever listens.
#[derive(Debug, Default)]
struct Compared {
    /// The kernel's own count when the programs were attached; none when it cannot be read.
    start: Option<u64>,
    /// Failures that the programs counted since.
    counted: u64,
    /// By how much they were behind at the last look.
    behind: u64,
    /// How many of these were noted as missed.
    missed: u64,
}

impl Compared {
    /// `own` is the kernel's own count before the programs' was taken, `counted` what was taken then. Failures that the
    /// programs have missed for certain since the last look: the tracepoint follows the kernel's count after a moment, so
    /// being behind counts when it lasts.
    fn look(&mut self, own: Option<u64>, counted: u64) -> u64 {
        self.counted += counted;
        let (Some(start), Some(own)) = (self.start, own) else { return 0 };
        let behind = own.saturating_sub(start).saturating_sub(self.counted);
        let newly = behind.min(self.behind).saturating_sub(self.missed);
        self.behind = behind;
        self.missed += newly;
        newly
    }
}

/// Failures in all namespaces of the node.
#[derive(Debug)]
pub struct NodeFailures {
    pub since: Timestamp,
    pub window_s: f64,
    pub accounts: FailureAccounts,
    /// Most often first; devices have no names yet.
    groups: Vec<(Owner, Failure)>,
    /// What the hooks that do not run would have counted.
    pub unseen: Vec<Gap>,
}

impl KernelNeighbours {
    pub(super) fn plan(btf: &Btf<'_>, size: EventSize, plan: &mut Plan) -> Result<Planned, LoadError> {
        layout(btf, plan)?;
        Ok(Events::plan(btf, &NAMES, &HOOKS, size, plan))
    }

    pub(super) fn attach(object: &Object, planned: Planned) -> Result<Self, LoadError> {
        let events = Events::attach(object, planned)?;
        Ok(Self { events, compared: Compared { start: host::neighbour::failures().ok(), ..Compared::default() } })
    }

    pub fn checks(&self) -> Vec<Check> {
        self.events.checks()
    }

    /// Takes what the kernel counted since the last harvest. Blocks for 10 to 20 ms.
    pub fn harvest(&mut self, now: Timestamp) {
        let own = host::neighbour::failures().ok();
        let counted = self.events.harvest(now).of(record::FAILED);
        self.events.miss(self.compared.look(own, counted));
    }

    /// What was harvested in the window. `resolve` says whose namespace a number is.
    pub fn observe(&self, now: Timestamp, window: Window, resolve: &dyn Fn(u64) -> Owner) -> NodeFailures {
        let view = self.events.view(now, window, resolve);
        let sum = &view.sum;
        let accounts = FailureAccounts {
            total: sum.total,
            failed: sum.of(record::FAILED),
            refused: sum.of(record::REFUSED),
            attributed: sum.attributed,
            coarse: sum.coarse,
            foreign_netns: view.foreign,
            total_only: sum.total_only,
            missed: view.missed,
            forgotten: view.forgotten,
        };
        let mut groups: Vec<(Owner, Failure)> = view
            .keys
            .into_iter()
            .filter_map(|(owner, key, count)| {
                let failure = Failure {
                    address: key.ends.map(|ends| ends.destination),
                    link_index: key.detail,
                    device: String::new(),
                    kind: kind(key.kind)?,
                    times: count.packets,
                    first_at: view.clock.at(count.first_ns),
                    last_at: view.clock.at(count.last_ns),
                };
                Some((owner, failure))
            })
            .collect();
        groups.sort_by_key(|(_, failure)| (Reverse(failure.times), failure.link_index, failure.address, failure.kind));
        NodeFailures { since: view.since, window_s: view.window_s, accounts, groups, unseen: self.events.unseen() }
    }
}

impl NodeFailures {
    /// Those of one namespace, whose devices have these names.
    pub fn of(self, owner: &Owner, devices: &BTreeMap<u32, String>) -> Failures {
        let mut groups: Vec<Failure> =
            self.groups.into_iter().filter(|(of, _)| of == owner).map(|(_, failure)| failure).collect();
        let omitted_groups = groups.len().saturating_sub(ANSWER_GROUPS) as u64;
        groups.truncate(ANSWER_GROUPS);
        for failure in &mut groups {
            failure.device = devices.get(&failure.link_index).cloned().unwrap_or_default();
        }
        Failures { since: self.since, window_s: self.window_s, accounts: self.accounts, groups, omitted_groups }
    }
}

/// None for a kind of a newer program.
fn kind(kind: u8) -> Option<FailureKind> {
    match kind {
        record::FAILED => Some(FailureKind::Failed),
        record::REFUSED => Some(FailureKind::Refused),
        _ => None,
    }
}

fn layout(btf: &Btf<'_>, plan: &mut Plan) -> Result<(), LoadError> {
    const MEMBERS: [(&str, &str, &str, u32); 9] = [
        ("O_NEIGH_TABLE", "neighbour", "tbl", 8),
        ("O_NEIGH_PARAMETERS", "neighbour", "parms", 8),
        ("O_NEIGH_PROBES", "neighbour", "probes", 4),
        ("O_NEIGH_STATE", "neighbour", "nud_state", 1),
        ("O_NEIGH_DEV", "neighbour", "dev", 8),
        // An array without a length.
        ("O_NEIGH_ADDRESS", "neighbour", "primary_key", 0),
        ("O_TABLE_FAMILY", "neigh_table", "family", 4),
        ("O_DEV_NET", "net_device", "nd_net", 8),
        ("O_DEV_IFINDEX", "net_device", "ifindex", 4),
    ];
    for (global, structure, member, size) in MEMBERS {
        plan.set(global, layout::offset(btf, structure, member, size)?);
    }
    plan.set("O_NEIGH_FLAGS", layout::offset(btf, "neighbour", "flags", 4).unwrap_or(0));
    let parameters = LoadError::Member { structure: "neigh_parms", member: "data" };
    let parameters = btf.member("neigh_parms", "data").ok_or(parameters)?;
    plan.set("O_PARAMETERS_UNICAST", parameters.offset + 4 * UNICAST_PROBES);
    layout::netns(btf, plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_behind_the_kernels_count_was_missed() {
        let mut compared = Compared { start: Some(100), ..Compared::default() };
        assert_eq!(compared.look(Some(103), 3), 0);
        // One was counted by the kernel and not yet by the program.
        assert_eq!((compared.look(Some(104), 0), compared.look(Some(104), 1)), (0, 0));
        // Two never come.
        assert_eq!((compared.look(Some(110), 4), compared.look(Some(110), 0), compared.look(Some(110), 0)), (0, 2, 0));
        assert_eq!((compared.look(Some(112), 1), compared.look(Some(112), 0)), (0, 1));
    }

    #[test]
    fn nothing_is_missed_for_want_of_the_kernels_count() {
        let mut compared = Compared::default();
        assert_eq!((compared.look(Some(10), 0), compared.look(None, 0)), (0, 0));
    }
}
