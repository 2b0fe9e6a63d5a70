//! What a DNS name means inside the cluster: candidates by search list, Services by the cluster domain.

/// A name as it was asked and what it may stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsName {
    /// As asked, without the trailing dot.
    pub asked: String,
    /// Fully qualified candidates in the order a resolver tries them (resolv.conf(5)); the asked name itself among them.
    pub candidates: Vec<String>,
    /// The cluster's domain: `cluster.local` unless the search list says otherwise.
    pub cluster_domain: String,
}

/// The domain of the cluster from a pod's search list: the suffix after `svc.` (kubelet writes NS.svc.DOMAIN, svc.DOMAIN, DOMAIN).
pub fn cluster_domain(search: &[String]) -> Option<String> {
    search.iter().find_map(|entry| entry.strip_prefix("svc.")).map(str::to_owned)
}

impl DnsName {
    /// The candidates of `asked` for a client with this search list and ndots.
    pub fn new(asked: &str, search: &[String], ndots: u8) -> Self {
        let absolute = asked.ends_with('.');
        let asked = asked.trim_end_matches('.').to_owned();
        let dots = asked.matches('.').count();
        let searched = search.iter().map(|suffix| format!("{asked}.{}", suffix.trim_end_matches('.')));
        let candidates = if absolute {
            vec![asked.clone()]
        } else if dots >= usize::from(ndots) {
            std::iter::once(asked.clone()).chain(searched).collect()
        } else {
            searched.chain(std::iter::once(asked.clone())).collect()
        };
        let cluster_domain = cluster_domain(search).unwrap_or_else(|| "cluster.local".to_owned());
        Self { asked, candidates, cluster_domain }
    }

    /// The Services the candidates stand for, as (namespace, name), in the order they are tried.
    pub fn services(&self) -> Vec<(String, String)> {
        let suffix = format!(".svc.{}", self.cluster_domain);
        let in_cluster = self.candidates.iter().filter_map(|candidate| candidate.strip_suffix(&suffix));
        in_cluster
            .filter_map(|rest| {
                let mut labels = rest.rsplit('.');
                let namespace = labels.next()?;
                // A pod of a headless Service has one label more (hostname.service.namespace).
                let service = labels.next()?;
                Some((namespace.to_owned(), service.to_owned()))
            })
            .collect()
    }

    /// Whether the name can only be meant for this cluster: one of its forms ends with the cluster domain as asked.
    pub fn is_in_cluster_domain(&self) -> bool {
        self.asked == self.cluster_domain || self.asked.ends_with(&format!(".{}", self.cluster_domain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search() -> Vec<String> {
        ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_short_name_is_a_service_of_the_clients_namespace_first() {
        let name = DnsName::new("web", &search(), 5);
        assert_eq!(name.services()[0], ("shop".to_owned(), "web".to_owned()));
    }

    #[test]
    fn a_name_with_namespace_is_tried_in_all_its_readings() {
        let services = DnsName::new("web.pay", &search(), 5).services();
        assert!(services.contains(&("pay".to_owned(), "web".to_owned())), "{services:?}");
    }

    #[test]
    fn a_trailing_dot_switches_the_search_list_off() {
        assert_eq!(DnsName::new("web.pay.svc.cluster.local.", &search(), 5).candidates, ["web.pay.svc.cluster.local"]);
    }

    #[test]
    fn a_cluster_may_have_another_domain() {
        let search = ["shop.svc.corp.example".to_owned(), "svc.corp.example".to_owned()];
        assert_eq!(DnsName::new("web", &search, 5).services()[0], ("shop".to_owned(), "web".to_owned()));
    }
}
