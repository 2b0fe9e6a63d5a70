//! The numbers for metrics: since the start, without names and namespaces.

use netdiag_common::observation::dns::DnsAccounts;
use netdiag_common::record::dns::{RCODE_OTHER, RCODES};

use super::KernelDns;
use super::counted::append;
use crate::metrics::{Export, Families, catalogue};
use crate::rcode::rcode_name;

impl Export for KernelDns {
    fn export(&self, into: &mut Families) {
        let mut accounts = DnsAccounts::default();
        let mut rcodes = [0; RCODES];
        for counted in self.history.since_start() {
            append(&mut accounts, &counted.accounts);
            rcodes.iter_mut().zip(counted.rcodes).for_each(|(sum, answers)| *sum += answers);
        }
        for (end, queries) in [
            ("answered", accounts.answered),
            ("unanswered", accounts.unanswered),
            ("unparsed", accounts.unparsed),
            ("shed", accounts.shed),
        ] {
            into.add(&catalogue::DNS_QUERIES, &[end], queries);
        }
        for (row, answers) in rcodes.into_iter().enumerate().filter(|(_, answers)| *answers > 0) {
            let name = match u16::try_from(row) {
                Ok(code) if row < RCODE_OTHER => rcode_name(code),
                _ => "OTHER".to_owned(),
            };
            into.add(&catalogue::DNS_ANSWERS, &[&name], answers);
        }
        into.add(&catalogue::DNS_OPEN, &[], self.open);
        into.add(&catalogue::DNS_RETRIES, &[], accounts.retries);
        into.add(&catalogue::DNS_SERVED, &["query"], accounts.served_queries);
        into.add(&catalogue::DNS_SERVED, &["answer"], accounts.served_answers);
        for (cause, events) in [
            ("table_full", accounts.shed),
            ("group_full", accounts.ungrouped),
            ("group_forgotten", accounts.forgotten),
            ("name_suppressed", accounts.names_suppressed),
            ("name_lost", accounts.names_lost),
        ] {
            into.add(&catalogue::LOST_EVENTS, &["dns", cause], events);
        }
    }
}
