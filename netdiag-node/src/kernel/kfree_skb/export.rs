//! Dropped packets as metrics: totals since the agent's start.

use netdiag_common::observation::kfree_skb::DropAccounts;
use netdiag_common::record::kfree_skb::REASONS;

use super::KernelDrops;
use super::counted::sum;
use crate::metrics::{Export, Families, catalogue};

impl Export for KernelDrops {
    fn export(&self, into: &mut Families) {
        let mut accounts = DropAccounts::default();
        let mut by_reason = vec![0; REASONS];
        for counted in self.history.since_start() {
            sum(&mut accounts, &counted.accounts);
            by_reason.iter_mut().zip(&counted.by_reason).for_each(|(sum, packets)| *sum += packets);
        }
        for total in self.reason_totals(&by_reason) {
            into.add(&catalogue::DROPS, &[&total.reason], total.packets);
        }
        for (level, packets) in [
            ("attributed", accounts.attributed),
            ("coarse", accounts.coarse),
            ("reason_only", accounts.reason_only),
            ("link", accounts.link),
            ("not_network", accounts.foreign),
            ("unparsed", accounts.unparsed),
        ] {
            into.add(&catalogue::DROPS_ACCOUNTED, &[level], packets);
        }
        for (cause, events) in [
            ("program_busy", accounts.missed),
            ("tuple_forgotten", accounts.forgotten),
            ("exemplar_lost", accounts.exemplars_lost),
        ] {
            into.add(&catalogue::LOST_EVENTS, &["kfree_skb", cause], events);
        }
    }
}
