//! The rules that kube-proxy writes for very many Services, as text that nft and iptables-restore load.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

pub(super) const ENDPOINTS: u32 = 3;

/// Where clients come from, so that nothing is masqueraded.
const POD_NETWORK: &str = "10.128.0.0/9";

/// What kube-proxy writes around the Services in nftables mode.
const FRAME: &str = include_str!("frame.nft");

/// Cluster IP of a Service by its number.
pub(super) fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + service)
}

fn endpoint(service: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 130, 0, 1)) + service * ENDPOINTS + number)
}

/// For nft: a chain for each Service, and one element of a verdict map that leads there.
pub(super) fn nftables(services: u32) -> String {
    let mut text = FRAME.to_owned();
    let mut elements = Vec::new();
    for service in 0..services {
        let ip = cluster_ip(service);
        let chain = format!("service-{service:08X}-bench/web-{service}/tcp/http");
        let map: Vec<String> =
            (0..ENDPOINTS).map(|number| format!("{number} : {} . 8080", endpoint(service, number))).collect();
        let _ = writeln!(
            text,
            "table ip kube-proxy {{\nchain {chain} {{\n\
             ip daddr {ip} tcp dport 80 ip saddr != {POD_NETWORK} jump mark-for-masquerade\n\
             meta l4proto tcp dnat to numgen random mod {ENDPOINTS} map {{ {} }}\n}}\n}}",
            map.join(", ")
        );
        elements.push(format!("{ip} . tcp . 80 : goto {chain}"));
    }
    for part in elements.chunks(1000) {
        let _ = writeln!(text, "add element ip kube-proxy service-ips {{ {} }}", part.join(", "));
    }
    let ips: Vec<String> = (0..services).map(|service| cluster_ip(service).to_string()).collect();
    for part in ips.chunks(1000) {
        let _ = writeln!(text, "add element ip kube-proxy cluster-ips {{ {} }}", part.join(", "));
    }
    text
}

/// For iptables-restore: a rule for each Service in one chain, a chain for each Service and each endpoint.
pub(super) fn iptables(services: u32) -> String {
    let mut chains = String::from(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n",
    );
    let mut rules = String::from(
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n",
    );
    for service in 0..services {
        let (ip, name) = (cluster_ip(service), format!("bench/web-{service}:http"));
        let chain = format!("KUBE-SVC-{service:016X}");
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let to = format!("-d {ip}/32 -p tcp -m comment --comment \"{name} cluster IP\" -m tcp --dport 80");
        let _ =
            writeln!(rules, "-A KUBE-SERVICES {to} -j {chain}\n-A {chain} ! -s {POD_NETWORK} {to} -j KUBE-MARK-MASQ");
        for number in 0..ENDPOINTS {
            let (address, left) = (endpoint(service, number), ENDPOINTS - number);
            let own = format!("KUBE-SEP-{service:08X}{number:08X}");
            let chance = match left {
                1 => String::new(),
                left => format!(" -m statistic --mode random --probability {:.10}", 1.0 / f64::from(left)),
            };
            let _ = writeln!(chains, ":{own} - [0:0]");
            let _ = writeln!(
                rules,
                "-A {chain} -m comment --comment \"{name} -> {address}:8080\"{chance} -j {own}\n\
                 -A {own} -s {address}/32 -m comment --comment \"{name}\" -j KUBE-MARK-MASQ\n\
                 -A {own} -p tcp -m comment --comment \"{name}\" -m tcp -j DNAT --to-destination {address}:8080"
            );
        }
    }
    let last = "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in \
                this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";
    [&chains, &rules, last, "COMMIT\n", FILTER].concat()
}

/// The objects that these rules are made of, one on each line.
pub(super) fn objects(services: u32) -> String {
    let mut text = String::from("{\"kind\":\"Node\",\"metadata\":{\"name\":\"n1\"}}\n");
    for service in 0..services {
        let meta = format!("\"name\":\"web-{service}\",\"namespace\":\"bench\"");
        let _ = writeln!(
            text,
            "{{\"kind\":\"Service\",\"metadata\":{{{meta}}},\"spec\":{{\"clusterIP\":\"{}\",\
             \"ports\":[{{\"name\":\"http\",\"port\":80}}]}}}}",
            cluster_ip(service)
        );
        let endpoints: Vec<String> = (0..ENDPOINTS)
            .map(|number| {
                let address = endpoint(service, number);
                format!("{{\"addresses\":[\"{address}\"],\"conditions\":{{\"ready\":true}},\"nodeName\":\"n2\"}}")
            })
            .collect();
        let _ = writeln!(
            text,
            "{{\"kind\":\"EndpointSlice\",\"metadata\":{{{meta},\"labels\":{{\"kubernetes.io/service-name\":\
             \"web-{service}\"}}}},\"addressType\":\"IPv4\",\"ports\":[{{\"name\":\"http\",\"port\":8080}}],\
             \"endpoints\":[{}]}}",
            endpoints.join(",")
        );
    }
    text
}

/// What kube-proxy writes to the other table when every Service has endpoints.
const FILTER: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_its_rules() {
        assert_eq!(nftables(1500).matches("dnat to numgen").count(), 1500);
        assert_eq!(nftables(1500).matches(" : goto service-").count(), 1500);
        let iptables = iptables(20);
        assert_eq!(iptables.matches("-j DNAT").count(), 60);
        assert_eq!(iptables.matches("--probability 0.3333333333 ").count(), 20);
    }
}
