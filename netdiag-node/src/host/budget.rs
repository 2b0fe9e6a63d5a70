//! How many rules a reading keeps, and what it says about the others.

use netdiag_common::observation::rules::SERVICE_CHAINS;

/// How much is kept of one reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Rules, after look-ups in small sets were unfolded.
    pub rules: usize,
    /// The same for rules in the chains that kube-proxy makes for its Services: there are a hundred times more of them,
    /// and they must not crowd out the others.
    pub service_rules: usize,
    /// Elements of maps in kube-proxy's own tables, which are decoded as Services: all of them together.
    pub service_elements: usize,
    /// Whether rules carry their text, which is most of their memory.
    pub with_text: bool,
}

/// Of kube-proxy in nftables mode (`--proxy-mode=nftables`, since Kubernetes 1.29).
pub(crate) const KUBE_PROXY_TABLE: &str = "kube-proxy";

pub(crate) struct Budget {
    limits: Limits,
    rules: Counted,
    service_rules: Counted,
    service_elements: usize,
}

#[derive(Default)]
struct Counted {
    kept: usize,
    cut: bool,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, rules: Counted::default(), service_rules: Counted::default(), service_elements: 0 }
    }

    pub(crate) fn with_text(&self) -> bool {
        self.limits.with_text
    }

    /// Whether one more rule of this chain is kept. Remembers when one is not.
    pub(crate) fn admits(&mut self, table: &str, chain: &str) -> bool {
        let (counted, most) = self.counted(table, chain);
        let admitted = counted.kept < most;
        counted.cut |= !admitted;
        admitted
    }

    pub(crate) fn add(&mut self, table: &str, chain: &str, rules: usize) {
        self.counted(table, chain).0.kept += rules;
    }

    pub(crate) fn admits_service_element(&mut self) -> bool {
        let admitted = self.service_elements < self.limits.service_elements;
        self.service_elements += usize::from(admitted);
        admitted
    }

    pub(crate) fn is_out_of_service_elements(&self) -> bool {
        self.service_elements >= self.limits.service_elements
    }

    /// What was left out, in words.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let counted = [(&self.rules, "rules"), (&self.service_rules, SERVICE_CHAINS)];
        let beyond = counted.iter().filter(|(counted, _)| counted.cut);
        let words = |(counted, what): &(&Counted, &str)| {
            format!("{what} after the first {}, with the chains they are in", counted.kept)
        };
        beyond.map(words).collect()
    }

    fn counted(&mut self, table: &str, chain: &str) -> (&mut Counted, usize) {
        if is_service_chain(table, chain) {
            (&mut self.service_rules, self.limits.service_rules)
        } else {
            (&mut self.rules, self.limits.rules)
        }
    }
}

/// Chains of which kube-proxy has one or more per Service or endpoint, and those with one rule per Service.
fn is_service_chain(table: &str, chain: &str) -> bool {
    let nftables = ["service-", "external-", "local-", "endpoint-", "firewall-"];
    let iptables = ["KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-SVL-", "KUBE-FW-", "KUBE-SERVICES", "KUBE-NODEPORTS"];
    if table == KUBE_PROXY_TABLE {
        // Chain names of Services hold `namespace/name`; `service-endpoints-check` and its like do not.
        return chain.contains('/') && nftables.iter().any(|prefix| chain.starts_with(prefix));
    }
    iptables.iter().any(|prefix| chain.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_services_do_not_crowd_out_the_others() {
        let limits = Limits { rules: 1, service_rules: 2, service_elements: 0, with_text: true };
        let mut budget = Budget::new(limits);
        for _ in 0..5 {
            if budget.admits("nat", "KUBE-SEP-X") {
                budget.add("nat", "KUBE-SEP-X", 1);
            }
        }
        assert!(budget.admits("filter", "INPUT"));
        assert_eq!(budget.left_out(), ["rules in chains of Services after the first 2, with the chains they are in"]);
    }

    #[test]
    fn checks_of_kube_proxy_are_no_service_chains() {
        assert!(is_service_chain("kube-proxy", "service-X7TFKKST-default/web/tcp/alt"));
        assert!(!is_service_chain("kube-proxy", "service-endpoints-check"));
    }
}
