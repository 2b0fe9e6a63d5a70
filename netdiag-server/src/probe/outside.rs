//! Where people outside come to a Service: the addresses of its load balancer, and `externalIPs`. Clouds may know a load balancer by
//! a name alone, which the client looks up.

use std::net::IpAddr;

use netdiag_common::observation::series::dns::DnsReport;

use super::plan::{Plan, Schedule};
use super::rights::Rights;
use super::run::{self, Sender, Wish};
use crate::ask::Source;
use crate::path::Path;

/// Two servers that say nothing (resolv.conf(5)): the rung of the Service's own name tells more of them.
const LOOKUP: Schedule = Schedule { timeout_ms: 10_000, ..run::LOOKUP };

/// What is known of one family.
#[derive(Default)]
pub(super) struct Outside {
    pub addresses: Vec<IpAddr>,
    /// The load balancer's name that led to them; empty where the Service has them itself.
    pub name: String,
    /// Why there are none; empty where there are.
    pub none: String,
}

impl<S: Source, R: Rights> Sender<'_, S, R> {
    pub(super) async fn outside(&self, plan: &Plan, path: &Path, is_v4: bool) -> Outside {
        let of_family = |address: &IpAddr| address.is_ipv4() == is_v4;
        let none = "the Service has no external address of this family".to_owned();
        let Some(service) = path.service() else { return Outside { none, ..Outside::default() } };
        let addresses: Vec<IpAddr> = service.outside_ips().filter(of_family).collect();
        if !addresses.is_empty() {
            return Outside { addresses, ..Outside::default() };
        }
        let Some(name) = service.load_balancer_names().next() else { return Outside { none, ..Outside::default() } };
        // As it is written: a search list adds nothing to it.
        let shot = run::lookup(plan, &format!("{}.", name.trim_end_matches('.')));
        let wish = Wish { client: plan.client.clone(), shot, schedule: LOOKUP };
        let (series, _) = self.send(plan, &[wish]).await;
        let reports = series.iter().filter_map(|series| series.tally.report::<DnsReport>());
        let addresses: Vec<IpAddr> = reports.flat_map(|report| report.addresses).filter(of_family).collect();
        let none = if addresses.is_empty() {
            format!("the load balancer is known as {name} alone, and the client finds no address of this family for it")
        } else {
            String::new()
        };
        Outside { addresses, name: name.to_owned(), none }
    }
}
