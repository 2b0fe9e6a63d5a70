//! CoreDNS's configuration: which server block answers for which names, by which plugins.
//!
//! Read are server blocks with the words of their plugins (<https://coredns.io/manual/configuration/>); snippets, imports and variables
//! are not followed.

use super::Cluster;

/// A server block: `ZONE[:PORT] … {` and its plugins with their words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block<'c> {
    /// Without scheme and port.
    pub zones: Vec<&'c str>,
    pub plugins: Vec<Vec<&'c str>>,
}

/// That of the cluster's DNS, where kubeadm and most installers keep it; none where it was not read either.
pub fn of(cluster: &Cluster) -> Option<&str> {
    cluster.config_maps.get("kube-system", "coredns")?.data.get("Corefile").map(String::as_str)
}

pub fn blocks(corefile: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut zones: Vec<&str> = Vec::new();
    let mut depth = 0_usize;
    for line in corefile.lines() {
        let mut words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        let opens = words.last() == Some(&"{");
        if opens {
            words.pop();
        }
        match (depth, words.as_slice()) {
            (_, ["}", ..]) => depth = depth.saturating_sub(1),
            (0, keys) => {
                zones.extend(keys.iter().map(|key| zone(key)));
                if opens {
                    blocks.push(Block { zones: std::mem::take(&mut zones), plugins: Vec::new() });
                }
            }
            (1, [_, ..]) => blocks.last_mut().into_iter().for_each(|block| block.plugins.push(words.clone())),
            _ => {}
        }
        depth += usize::from(opens);
    }
    blocks
}

/// The domains of Services that a Corefile names: those behind `kubernetes`, or without any those of its server block
/// (<https://coredns.io/plugins/kubernetes/>). Not those that only addresses are looked up in, nor what comes out of CoreDNS's environment.
pub fn served(corefile: &str) -> Vec<String> {
    let mut domains: Vec<String> = Vec::new();
    for block in blocks(corefile) {
        for plugin in &block.plugins {
            let ["kubernetes", own @ ..] = plugin.as_slice() else { continue };
            let zones = if own.is_empty() { &block.zones } else { own };
            for zone in zones.iter().map(|zone| plain(zone)) {
                let is_reverse = zone.contains('/') || zone.rsplit('.').next() == Some("arpa");
                if !zone.is_empty() && !is_reverse && !zone.contains('{') && !domains.contains(&zone) {
                    domains.push(zone);
                }
            }
        }
    }
    domains
}

/// As names are compared: in small letters, without the dot at the end.
pub fn plain(domain: &str) -> String {
    domain.trim_end_matches('.').to_ascii_lowercase()
}

/// `example.org` of `dns://example.org:53,`.
fn zone(key: &str) -> &str {
    let key = key.trim_end_matches(',');
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    key.rsplit_once(':').map_or(key, |(zone, _)| zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_of_a_corefile_are_those_of_its_kubernetes_lines() {
        let usual = ".:53 {\n  errors\n  kubernetes cluster.local in-addr.arpa ip6.arpa {\n    pods insecure\n  }\n  cache\n}\n";
        assert_eq!(served(usual), ["cluster.local"]);
        assert_eq!(
            served(".:53 {\n  kubernetes Corp.Example. 10.96.0.0/12 other.example # both\n}"),
            ["corp.example", "other.example"]
        );
    }

    #[test]
    fn kubernetes_without_domains_has_those_of_its_block() {
        let text = "example.org {\n  forward . 9.9.9.9\n}\ndns://lab.example:53, in-addr.arpa:53 {\n  kubernetes {\n    ttl 5\n  }\n}";
        assert_eq!(served(text), ["lab.example"]);
    }

    #[test]
    fn what_is_no_domain_is_left_out() {
        assert_eq!(served(".:53 {\n  kubernetes\n}"), Vec::<String>::new());
        assert_eq!(served(".:53 {\n  kubernetes {$CLUSTER_DOMAIN} in-addr.arpa\n}"), Vec::<String>::new());
        assert_eq!(served("} } { kubernetes"), Vec::<String>::new());
    }
}
