//! Zones of the cluster's nodes, for the columns of a matrix by zone.

use std::collections::{BTreeMap, BTreeSet};

use crate::evidence::Cluster;
use crate::evidence::object::ZONE_LABEL;
use crate::path::{Backend, Client, Path};
use crate::probe::words_of;

/// The zone of each node that has one.
pub(super) struct Zones {
    of_node: BTreeMap<String, String>,
}

/// Where another node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Far {
    SameZone,
    OtherZone,
}

impl Zones {
    /// None where all nodes are in one zone, or none is known.
    pub fn of(cluster: &Cluster) -> Option<Self> {
        let known = cluster.nodes.iter().filter(|node| !node.zone().is_empty());
        let of_node = known.map(|node| (node.metadata.name.clone(), node.zone().to_owned())).collect();
        let zones = Self { of_node };
        (zones.names().len() > 1).then_some(zones)
    }

    pub fn names(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.of_node.values().collect();
        names.into_iter().cloned().collect()
    }

    pub fn knows(&self, node: &str) -> bool {
        self.of_node.contains_key(node)
    }

    /// None for the same node, and where the zone of one of them is not known.
    pub fn far(&self, from: &str, to: &str) -> Option<Far> {
        let (own, other) = (self.of_node.get(from)?, self.of_node.get(to)?);
        match own == other {
            _ if from == to => None,
            true => Some(Far::SameZone),
            false => Some(Far::OtherZone),
        }
    }
}

/// At most so many: from each place in turn, so that no place keeps another one out.
pub(super) fn in_turn<T>(targets: Vec<(Option<Far>, T)>, most: usize) -> Vec<(Option<Far>, T)> {
    let mut turns: BTreeMap<Option<Far>, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, (Option<Far>, T))> = Vec::new();
    for target in targets {
        let turn = turns.entry(target.0).or_default();
        ranked.push((*turn, target));
        *turn += 1;
    }
    ranked.sort_by_key(|(turn, _)| *turn);
    ranked.into_iter().map(|(_, target)| target).take(most).collect()
}

/// Sources and endpoints whose zone is not known: `pod/shop/web-3: node n4 has no label topology.kubernetes.io/zone`.
pub(super) fn without(zones: &Zones, sources: &[Client], path: &Path) -> Vec<String> {
    let endpoint = |backend: &Backend| match &backend.pod {
        Some(pod) => format!("pod/{}/{}", pod.metadata.namespace, pod.metadata.name),
        None => backend.address.to_string(),
    };
    let sources = sources.iter().map(|source| (words_of(source), source.node.as_str()));
    let endpoints = path.backends.iter().filter(|backend| !backend.terminating);
    let all = sources.chain(endpoints.map(|backend| (endpoint(backend), backend.node.as_str())));
    let unknown = all.filter(|(_, node)| !zones.knows(node)).map(|(who, node)| match node {
        "" => format!("{who}: nobody says on which node it is"),
        node => format!("{who}: node {node} has no label {ZONE_LABEL}"),
    });
    // An endpoint of both families, and one that is a source too, are told once.
    unknown.collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::evidence::parse;

    fn cluster(zones: &[(&str, Option<&str>)]) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, zone) in zones {
            let labels = zone.map_or_else(|| json!({}), |zone| json!({ZONE_LABEL: zone}));
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
            parse::add(&mut cluster, node).expect("a node");
        }
        cluster
    }

    #[test]
    fn one_zone_alone_is_no_column() {
        assert!(Zones::of(&cluster(&[("n1", Some("a")), ("n2", Some("a")), ("n3", None)])).is_none());
        assert!(Zones::of(&cluster(&[("n1", None)])).is_none());
    }

    #[test]
    fn far_is_another_node_whose_zone_is_known() {
        let cluster = cluster(&[("n1", Some("a")), ("n2", Some("b")), ("n3", Some("a")), ("n4", None)]);
        let zones = Zones::of(&cluster).expect("two zones");
        assert_eq!(zones.names(), ["a", "b"]);
        let far = |to| zones.far("n1", to);
        assert_eq!((far("n1"), far("n3"), far("n2")), (None, Some(Far::SameZone), Some(Far::OtherZone)));
        assert_eq!((far("n4"), far("")), (None, None));
    }

    #[test]
    fn many_targets_of_one_zone_do_not_hide_those_of_another() {
        let near = (0..9).map(|number| (Some(Far::SameZone), number));
        let chosen = in_turn(near.chain([(Some(Far::OtherZone), 20), (None, 30)]).collect(), 4);
        assert_eq!(chosen.into_iter().map(|(_, number)| number).collect::<Vec<_>>(), [0, 20, 30, 1]);
    }
}
