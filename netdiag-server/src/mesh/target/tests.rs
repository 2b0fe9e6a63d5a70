use super::*;

const FILE: &str = "
targets:
- {name: registry, kind: tcp, to: '10.0.0.9:5000'}
- {name: web, kind: http, to: 'http://web.shop.svc.cluster.local/hostname', status: [200], interval: 10s, timeout: 3s}
- {name: console, kind: https, to: 'https://console.example:8443/', timeout: 1500ms}
- {name: api, kind: tls, to: 'kubernetes.default.svc.cluster.local:443'}
- {name: gateway, kind: icmp, to: 'fd00::1'}
- {name: outside, kind: dns, to: example.com, server: 10.0.0.2, record: AAAA}
";

#[test]
fn every_kind_is_read() {
    let targets: Vec<UserTarget> = parse(FILE).unwrap().iter().map(|target| target.check().unwrap()).collect();
    let kinds: Vec<&str> = targets.iter().map(|target| target.kind().name()).collect();
    assert_eq!(kinds, ["tcp", "http", "http", "tls", "icmp", "dns"]);
    let web = &targets[1];
    assert_eq!((web.every, web.timeout_ms), (5, Some(3_000)));
    assert!(matches!(&web.aim, Aim::Http { is_of_service: true, expect, .. } if *expect == [200]), "{web:?}");
    assert!(matches!(&targets[2].aim, Aim::Http { is_of_service: false, .. }));
    let Aim::Tls { host, server_name, .. } = &targets[3].aim else { panic!("{targets:?}") };
    assert_eq!(*host, Host::Service { namespace: "default".to_owned(), name: "kubernetes".to_owned() });
    assert_eq!(server_name.as_deref(), Some("kubernetes.default.svc.cluster.local"));
    let server = Some("10.0.0.2:53".parse().unwrap());
    assert_eq!(targets[5].aim, Aim::Dns { name: "example.com".to_owned(), record: DnsRecord::Aaaa, server });
    assert_eq!(parse("targets: []"), Ok(Vec::new()));
}

#[test]
fn what_is_wrong_is_told_with_its_entry() {
    for (entry, says) in [
        ("{name: web, kind: smtp, to: a}", "entry 1 (web) of targets: unknown variant `smtp`"),
        ("{name: web, kind: tcp}", "missing field `to`"),
        ("{name: web, kind: tcp, to: '10.0.0.1:80', retries: 3}", "unknown field `retries`"),
        ("{name: web, kind: tcp, to: '10.0.0.1'}", "use HOST:PORT"),
        ("{name: web, kind: tcp, to: 'fd00::1:80'}", "IPv6 in brackets"),
        ("{name: web, kind: tcp, to: 'web.shop.svc:80'}", "write the whole name, as web.shop.svc.cluster.local"),
        ("{name: web, kind: tcp, to: 'example.com:80'}", "a Service's whole name"),
        ("{name: web, kind: tcp, to: '0.0.0.0:80'}", "0.0.0.0 is no single host: it is no address"),
        ("{name: web, kind: tls, to: '[fe80::1]:443'}", "fe80::1 is no single host: it needs an interface"),
        ("{name: web, kind: icmp, to: '224.0.0.1'}", "it is multicast"),
        ("{name: web, kind: icmp, to: '::'}", "it is no address"),
        ("{name: web, kind: http, to: 'https://web/'}", "use http://HOST[:PORT]/PATH"),
        ("{name: web, kind: https, to: 'https://me:secret@web/'}", "a URL with a user"),
        ("{name: web, kind: http, to: 'http://web/', status: [20]}", "status 20: use 100 to 599"),
        ("{name: web, kind: http, to: 'http://web/', interval: 3s}", "interval \"3s\": use one of 2s, 4s, 10s, 20s"),
        ("{name: web, kind: http, to: 'http://web/', interval: 40s}", "use one of 2s, 4s, 10s, 20s"),
        ("{name: web, kind: http, to: 'http://web/', interval: 0s}", "use one of 2s, 4s, 10s, 20s"),
        ("{name: web, kind: http, to: 'http://web/', timeout: 6s}", "5000ms at most"),
        ("{name: web, kind: tcp, to: '10.0.0.1:80', status: [200]}", "status means nothing to kind tcp"),
        ("{name: web, kind: http, to: 'http://web/', authorities: x}", "authorities means nothing to kind http"),
        ("{name: web, kind: https, to: 'https://web/', authorities: x}", "no usable certificate"),
        ("{name: web, kind: dns, to: a..example}", "no name to ask a DNS server for"),
        ("{name: web, kind: dns, to: '-a.example'}", "no name to ask a DNS server for"),
        ("{name: web, kind: dns, to: 'a.example..'}", "no name to ask a DNS server for"),
        ("{name: web, kind: dns, to: a.example, record: MX}", "use A or AAAA"),
        ("{name: web, kind: dns, to: a.example, server: a}", "server \"a\": use ADDRESS"),
        ("{name: web, kind: dns, to: a.example, server: '255.255.255.255'}", "it is broadcast"),
        ("{name: web, kind: dns, to: a.example, server: '[ff02::fb]:5353'}", "it is multicast"),
        ("{name: 'a b', kind: icmp, to: 10.0.0.1}", "cannot name a target"),
    ] {
        let said = parse(&format!("targets:\n- {entry}\n")).unwrap_err();
        assert!(said.contains(says), "{entry}: {said}");
    }
    assert!(parse("targets: [{name: web, kind: dns, to: 'a.example.'}]").is_ok(), "a whole name has its dot");
    assert!(parse("target: []").unwrap_err().contains("no list of targets"));
}

#[test]
fn intervals_fill_a_round_without_rest() {
    let every = |interval: &str| {
        let entry = format!("targets: [{{name: web, kind: icmp, to: 10.0.0.1, interval: {interval}}}]");
        parse(&entry).map(|targets| targets[0].check().unwrap().every).ok()
    };
    let found = ["2s", "4000ms", "10s", "20s"].map(every);
    assert_eq!(found, [1, 2, 5, 10].map(Some));
    // In a round of 20 s they would have a last one of 2 s, 4 s, 8 s, and again 2 s.
    assert_eq!(["6s", "8s", "12s", "18s"].map(every), [None; 4]);
}

#[test]
fn targets_of_command_lines_have_plain_names_and_whole_addresses() {
    let target: UserTarget = "registry=10.0.0.9:5000".parse().unwrap();
    let host = Host::Address("10.0.0.9".parse().unwrap());
    assert_eq!((target.name.as_str(), target.aim), ("registry", Aim::Tcp { host, port: 5000 }));
    assert_eq!("v6=[fd00::1]:443".parse::<UserTarget>().unwrap().to_string(), "v6=[fd00::1]:443");
    for wrong in ["10.0.0.9:5000", "=10.0.0.9:1", "a b=10.0.0.9:1", "a/b=10.0.0.9:1", "a=10.0.0.9", "a=10.0.0.9:0"] {
        assert!(wrong.parse::<UserTarget>().is_err(), "{wrong}");
    }
    for wrong in ["a=0.0.0.0:80", "a=[ff02::1]:80"] {
        assert!(wrong.parse::<UserTarget>().unwrap_err().contains("no single host"), "{wrong}");
    }
    assert!(format!("{}=10.0.0.9:1", "x".repeat(64)).parse::<UserTarget>().is_err());
}
