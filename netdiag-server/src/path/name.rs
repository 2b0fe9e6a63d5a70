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
    /// Index of the candidate that stands for a Service; none when no candidate does.
    pub leads: Option<usize>,
}

/// One candidate read as a Service's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// Index into [`DnsName::candidates`].
    pub candidate: usize,
    pub namespace: String,
    pub service: String,
    /// A label stands before the Service's name: a pod's hostname, which only headless Services have.
    pub of_pod: bool,
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
        Self { asked, candidates, cluster_domain, leads: None }
    }

    /// The Services the candidates stand for, in the order they are tried.
    pub fn services(&self) -> Vec<ServiceName> {
        let suffix = format!(".svc.{}", self.cluster_domain);
        let read = |(candidate, name): (usize, &String)| {
            let mut labels = name.strip_suffix(&suffix)?.rsplit('.');
            let (namespace, service) = (labels.next()?.to_owned(), labels.next()?.to_owned());
            Some(ServiceName { candidate, namespace, service, of_pod: labels.next().is_some() })
        };
        self.candidates.iter().enumerate().filter_map(read).collect()
    }

    /// Indexes of the candidates a client has to ask for: the one that stands for a Service, else all of them.
    pub fn lookups(&self) -> Vec<usize> {
        self.leads.map_or_else(|| (0..self.candidates.len()).collect(), |leads| vec![leads])
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
        let first = &name.services()[0];
        assert_eq!((first.namespace.as_str(), first.service.as_str(), first.of_pod), ("shop", "web", false));
    }

    #[test]
    fn a_name_with_namespace_is_tried_in_all_its_readings() {
        let services = DnsName::new("web.pay", &search(), 5).services();
        let plain: Vec<_> = services.iter().filter(|s| !s.of_pod).collect();
        assert_eq!(plain.len(), 1, "{services:?}");
        assert_eq!((plain[0].namespace.as_str(), plain[0].service.as_str()), ("pay", "web"));
    }

    #[test]
    fn a_trailing_dot_switches_the_search_list_off() {
        assert_eq!(DnsName::new("web.pay.svc.cluster.local.", &search(), 5).candidates, ["web.pay.svc.cluster.local"]);
    }

    #[test]
    fn a_cluster_may_have_another_domain() {
        let search = ["shop.svc.corp.example".to_owned(), "svc.corp.example".to_owned()];
        assert_eq!(DnsName::new("web", &search, 5).services()[0].namespace, "shop");
    }
}
