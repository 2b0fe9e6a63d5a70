//! Which NetworkPolicy or pod a chain of a policy engine is for.
//!
//! Calico's names are computed: a policy's chain is called by the policy, or by a hash of that where it is too long
//! (`PolicyChainName` of `felix/rules/policy.go`, `GetLengthLimitedID` of `libcalico-go/lib/hash`), a pod's by its interface, which
//! is a hash of the pod's names (`VethNameForWorkload` of `libcalico-go/lib/backend/k8s/conversion`; projectcalico/calico as of 2026,
//! and dumps of older clusters, which the tests have).
//!
//! kube-router's cannot be: in its hashes is the moment of the sync (`podFirewallChainName` and `networkPolicyChainName` of
//! `pkg/controllers/netpol`, whose `version` is `syncVersion` of `fullPolicySync`; kube-router 1.6). Its comments say the names.

use std::cell::OnceCell;
use std::collections::HashMap;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use super::owner::MetRule;
use super::part::LAYERS;
use crate::evidence::Cluster;
use crate::evidence::object::Object;

/// `MaxChainNameLength` of `felix/iptables`.
const LONGEST: usize = 28;
/// What Calico's chains of policies begin with: packets to pods, and packets from them.
const OF_POLICIES: [&str; 2] = ["cali-pi-", "cali-po-"];
const OF_PODS: [&str; 2] = ["cali-tw-", "cali-fw-"];
/// Digits of the hash that an interface has.
const DIGITS: usize = 11;

const POD_CHAIN: &str = "KUBE-POD-FW-";
const POLICY_CHAIN: &str = "KUBE-NWPLCY-";

/// Names of policies and pods by those of their chains.
pub struct PolicyChains<'c> {
    cluster: &'c Cluster,
    /// Of all policies and pods, computed when the first chain of Calico is asked for.
    of_calico: OnceCell<HashMap<String, String>>,
}

impl<'c> PolicyChains<'c> {
    pub fn of(cluster: &'c Cluster) -> Self {
        Self { cluster, of_calico: OnceCell::new() }
    }

    /// `NetworkPolicy shop/deny`, `Pod shop/web-1`; none for rules that are for neither. `met`: the rules on the packet's way.
    pub fn object(&self, rule: &MetRule<'_>, met: &[MetRule<'_>]) -> Option<String> {
        let of_calico = || self.of_calico(rule.chain).or_else(|| self.of_calico(rule.leads_to?));
        of_kube_router(rule, met).or_else(of_calico)
    }

    fn of_calico(&self, chain: &str) -> Option<String> {
        let own = LAYERS.iter().find_map(|layer| chain.strip_prefix(layer)).unwrap_or(chain);
        if !OF_POLICIES.iter().chain(&OF_PODS).any(|prefix| own.starts_with(prefix)) {
            return None;
        }
        self.of_calico.get_or_init(|| self.computed()).get(own).cloned()
    }

    fn computed(&self) -> HashMap<String, String> {
        let mut chains = HashMap::new();
        for policy in self.cluster.network_policies.iter() {
            let (namespace, name) = (&policy.metadata.namespace, &policy.metadata.name);
            // The second one in versions that keep kinds apart (`felix/types/policy_id.go`).
            for id in [format!("{namespace}/knp.default.{name}"), format!("knp/{namespace}/{name}")] {
                for prefix in OF_POLICIES {
                    chains.insert(limited(prefix, &id), policy.reference().to_string());
                    // Names in nf_tables have room.
                    chains.insert(format!("{prefix}{id}"), policy.reference().to_string());
                }
            }
        }
        for pod in self.cluster.pods.iter().filter(|pod| !pod.spec.host_network) {
            let interface = interface(&pod.metadata.namespace, &pod.metadata.name);
            chains.extend(OF_PODS.map(|prefix| (format!("{prefix}{interface}"), pod.reference().to_string())));
        }
        chains
    }
}

/// `GetLengthLimitedID`
fn limited(prefix: &str, id: &str) -> String {
    let length = prefix.len() + id.len();
    if length < LONGEST || (length == LONGEST && !id.starts_with('_')) {
        return format!("{prefix}{id}");
    }
    let mut hash = BASE64URL_NOPAD.encode(digest(&SHA256, id.as_bytes()).as_ref());
    hash.truncate(LONGEST - prefix.len() - 1);
    format!("{prefix}_{hash}")
}

/// `VethNameForWorkload`
fn interface(namespace: &str, name: &str) -> String {
    let text = format!("{namespace}.{name}");
    let mut hash = HEXLOWER.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref());
    hash.truncate(DIGITS);
    format!("cali{hash}")
}

/// By the rule's own comment, else by that of the rule which led to its chain.
fn of_kube_router(rule: &MetRule<'_>, met: &[MetRule<'_>]) -> Option<String> {
    let is_own = |chain: &str| chain.starts_with(POD_CHAIN) || chain.starts_with(POLICY_CHAIN);
    if !is_own(rule.chain) && !rule.leads_to.is_some_and(is_own) {
        return None;
    }
    told(rule, met).or_else(|| told(led_here(rule, met)?, met))
}

fn told(rule: &MetRule<'_>, met: &[MetRule<'_>]) -> Option<String> {
    let comment = rule.comment?;
    policy(comment).or_else(|| pod(comment)).or_else(|| {
        let name = comment.strip_prefix("run through nw policy ")?;
        // The policy is of the pod's namespace.
        let (namespace, _) = names_of_pod(led_here(rule, met)?.comment?)?;
        Some(format!("NetworkPolicy {namespace}/{name}"))
    })
}

/// The rule by which the packet came to this one's chain.
fn led_here<'m, 'r>(rule: &MetRule<'_>, met: &'m [MetRule<'r>]) -> Option<&'m MetRule<'r>> {
    met.iter().find(|other| other.leads_to == Some(rule.chain))
}

/// `rule to ACCEPT traffic from source pods to dest pods selected by policy name deny namespace shop`, with a colon or without.
fn policy(comment: &str) -> Option<String> {
    let (_, rest) = comment.split_once("selected by policy name")?;
    let (name, namespace) = rest.trim_start_matches(':').trim_start().split_once(" namespace ")?;
    Some(format!("NetworkPolicy {}/{name}", namespace.trim()))
}

/// `rule to jump traffic destined to POD name:web-1 namespace: shop to chain KUBE-POD-FW-…`
fn pod(comment: &str) -> Option<String> {
    let (namespace, name) = names_of_pod(comment)?;
    Some(format!("Pod {namespace}/{name}"))
}

fn names_of_pod(comment: &str) -> Option<(&str, &str)> {
    let (_, rest) = comment.split_once("POD name:")?;
    let (name, rest) = rest.split_once(" namespace: ")?;
    Some((rest.split_whitespace().next()?, name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::evidence::parse;

    fn cluster(kind: &str, names: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster::default();
        for (namespace, name) in names {
            let object = json!({"kind": kind, "metadata": {"namespace": namespace, "name": name}});
            parse::add(&mut cluster, object).unwrap();
        }
        cluster
    }

    fn in_chain(chain: &str) -> MetRule<'_> {
        MetRule { chain, leads_to: None, comment: None }
    }

    #[test]
    fn chains_of_policies_have_the_names_that_calico_computes() {
        // As in dumps of clusters with Calico, beside comments that say the policy.
        let policies =
            [("default", "access-nginx"), ("default", "haejun-policy"), ("calico-apiserver", "allow-apiserver")];
        let cluster = cluster("NetworkPolicy", &policies);
        let chains = PolicyChains::of(&cluster);
        let object = |chain| chains.object(&in_chain(chain), &[]).unwrap_or_default();
        assert_eq!(object("cali-pi-_wrg4pJPiI1zj6SR3Ljt"), "NetworkPolicy default/access-nginx");
        assert_eq!(object("cali-pi-_Eb-vckmN-lr2eREXQcs"), "NetworkPolicy default/haejun-policy");
        assert_eq!(object("cali-po-_3CJ_GmvE9pcCktVJ2ep"), "NetworkPolicy calico-apiserver/allow-apiserver");
        assert_eq!(object("filter-cali-pi-default/knp.default.access-nginx"), "NetworkPolicy default/access-nginx");
        assert_eq!(object("cali-pi-_RPHPUh868v26JJg7645"), "");
        // `felix/fv`, for a policy of Calico's own.
        assert_eq!(limited("cali-pi-", "default/default.policy-1"), "cali-pi-_l_CMLPBmpkyZIIwB62k");
    }

    #[test]
    fn chains_of_pods_have_the_names_of_their_interfaces() {
        // As `calicoctl get workloadEndpoint` listed them.
        let pods = [("default", "db-8d66ff5f7-bp6kf"), ("default", "backend-867fd6dff-mjf92")];
        let cluster = cluster("Pod", &pods);
        let chains = PolicyChains::of(&cluster);
        let object = |chain| chains.object(&in_chain(chain), &[]).unwrap_or_default();
        assert_eq!(object("cali-tw-cali95aa86cbb2a"), "Pod default/db-8d66ff5f7-bp6kf");
        assert_eq!(object("cali-fw-cali2b1490aa46a"), "Pod default/backend-867fd6dff-mjf92");
        assert_eq!(object("cali-fw-cali505cfbeac50"), "");
    }

    #[test]
    fn comments_of_kube_router_say_what_its_chains_are_for() {
        let jump = MetRule {
            chain: "KUBE-ROUTER-FORWARD",
            leads_to: Some("KUBE-POD-FW-X"),
            comment: Some("rule to jump traffic destined to POD name:web-1 namespace: shop to chain KUBE-POD-FW-X"),
        };
        let run = MetRule {
            chain: "KUBE-POD-FW-X",
            leads_to: Some("KUBE-NWPLCY-Y"),
            comment: Some("run through nw policy deny"),
        };
        let accept = MetRule {
            chain: "KUBE-NWPLCY-Z",
            leads_to: None,
            comment: Some(
                "rule to ACCEPT traffic from all sources to dest pods selected by policy name: open namespace pay",
            ),
        };
        let reject = MetRule {
            chain: "KUBE-POD-FW-X",
            leads_to: None,
            comment: Some("rule to REJECT traffic destined for POD name:web-1 namespace: shop"),
        };
        let cluster = Cluster::default();
        let chains = PolicyChains::of(&cluster);
        let met = [jump, run, accept, reject];
        let object = |rule: &MetRule<'_>| chains.object(rule, &met).unwrap_or_default();
        assert_eq!(object(&jump), "Pod shop/web-1");
        assert_eq!(object(&run), "NetworkPolicy shop/deny");
        assert_eq!(object(&accept), "NetworkPolicy pay/open");
        assert_eq!(object(&reject), "Pod shop/web-1");
        assert_eq!(object(&in_chain("KUBE-POD-FW-X")), "Pod shop/web-1", "by the rule that led there");
        assert_eq!(object(&in_chain("KUBE-NWPLCY-Y")), "NetworkPolicy shop/deny");
        assert_eq!(object(&in_chain("KUBE-NWPLCY-DEFAULT")), "");
        assert_eq!(object(&MetRule { chain: "FORWARD", ..reject }), "", "anybody may write such a comment");
    }
}
