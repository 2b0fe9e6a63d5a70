//! The texts: network configurations as libcni takes them, and what of containerd's configuration says where they are.

use netdiag_common::observation::cni::{CniIpam, CniNetwork, CniPlugin};
use serde_json::Value;

/// One file. `name` decides whether it is a list of plugins (`.conflist`) or one plugin. The error is why the runtime cannot use it.
pub(super) fn network(name: &str, text: &str) -> Result<CniNetwork, String> {
    let file: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    let word = |key: &str| file.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is_list = name.ends_with(".conflist");
    let plugins = if is_list {
        let plugins = file.get("plugins").and_then(Value::as_array).ok_or("it has no plugins")?;
        plugins.iter().map(plugin).collect::<Result<Vec<_>, _>>()?
    } else {
        vec![plugin(&file)?]
    };
    let found = CniNetwork { name: word("name"), version: word("cniVersion"), plugins };
    match (found.plugins.is_empty(), is_list && found.name.is_empty()) {
        (true, _) => Err("it has no plugins".to_owned()),
        (_, true) => Err("it has no name".to_owned()),
        _ => Ok(found),
    }
}

fn plugin(value: &Value) -> Result<CniPlugin, String> {
    let word = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let kind = word(value, "type").filter(|kind| !kind.is_empty()).ok_or("a plugin has no type")?;
    let ipam = value
        .get("ipam")
        .filter(|ipam| ipam.is_object())
        .map(|ipam| CniIpam { kind: word(ipam, "type").unwrap_or_default(), subnets: subnets(ipam) });
    let mtu = value.get("mtu").and_then(Value::as_u64).and_then(|mtu| u32::try_from(mtu).ok());
    let device = word(value, "bridge").or_else(|| word(value, "master"));
    // Without a name, the plugin takes this one (plugins/main/bridge, `defaultBrName`).
    let device = if kind == "bridge" { device.or_else(|| Some("cni0".to_owned())) } else { device };
    // 0 is "as the kernel does it".
    Ok(CniPlugin { kind, device, mtu: mtu.filter(|mtu| *mtu > 0), ipam })
}

/// host-local's `subnet`, or the same in each of `ranges`.
fn subnets(ipam: &Value) -> Vec<ipnet::IpNet> {
    let net = |range: &Value| range.get("subnet")?.as_str()?.parse::<ipnet::IpNet>().ok();
    let sets = ipam.get("ranges").and_then(Value::as_array).into_iter().flatten();
    let ranges = sets.filter_map(Value::as_array).flatten();
    net(ipam).into_iter().chain(ranges.filter_map(net)).map(|net| net.trunc()).collect()
}

/// The value of `--config` or `-c` in a command line as /proc has it.
pub(super) fn configuration_of(command: &str) -> Option<&str> {
    let mut words = command.split('\0').skip(1);
    while let Some(word) = words.next() {
        if matches!(word, "--config" | "-c") {
            return words.next();
        }
        if let Some(path) = word.strip_prefix("--config=").or_else(|| word.strip_prefix("-c=")) {
            return Some(path);
        }
    }
    None
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Containerd {
    /// The plugin that kubelets talk to is not switched off.
    pub starts_pods: bool,
    /// `conf_dir`, when given.
    pub folder: Option<String>,
}

/// Reads the two keys that matter, and no more of TOML than they need: containerd itself writes each on a line of its own.
pub(super) fn containerd(text: &str) -> Containerd {
    let mut found = Containerd { starts_pods: true, folder: None };
    let mut table = String::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line.starts_with('[') {
            line.split('#').next().unwrap_or_default().trim().clone_into(&mut table);
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        match key.trim() {
            "conf_dir" if table.ends_with(".cni]") => found.folder = quoted(value).next().map(str::to_owned),
            "disabled_plugins" if table.is_empty() => {
                let mut value = value.to_owned();
                while !value.contains(']') {
                    let Some(more) = lines.next() else { break };
                    value.push_str(more);
                }
                let is_cri =
                    |name: &str| matches!(name, "cri" | "io.containerd.grpc.v1.cri" | "io.containerd.cri.v1.runtime");
                found.starts_pods = !quoted(&value).any(is_cri);
            }
            _ => {}
        }
    }
    found
}

/// The strings of a value, in either kind of quotes.
fn quoted(value: &str) -> impl Iterator<Item = &str> {
    let quote = if value.contains('\'') && !value.contains('"') { '\'' } else { '"' };
    value.split(quote).skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_plugins_with_ranges() {
        let text = r#"{"cniVersion": "1.0.0", "name": "k8s", "plugins": [
            {"type": "bridge", "bridge": "br0", "mtu": 1450, "ipam": {"type": "host-local", "ranges": [
                [{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
        let found = network("10-k8s.conflist", text).unwrap();
        assert_eq!((found.name.as_str(), found.version.as_str(), found.plugins.len()), ("k8s", "1.0.0", 2));
        let main = found.main_plugin().unwrap();
        assert_eq!((main.kind.as_str(), main.device.as_deref(), main.mtu), ("bridge", Some("br0"), Some(1450)));
        assert_eq!(main.ipam.as_ref().unwrap().kind, "host-local");
        assert_eq!(found.subnets().map(|net| net.to_string()).collect::<Vec<_>>(), ["10.244.1.0/24", "fd00:1::/64"]);
    }

    #[test]
    fn one_plugin_with_a_subnet() {
        let text = r#"{"name": "crio", "type": "bridge", "ipam": {"type": "host-local", "subnet": "10.85.0.0/16"}}"#;
        let found = network("100-crio-bridge.conf", text).unwrap();
        assert_eq!(found.plugins[0].device.as_deref(), Some("cni0"), "the plugin's own default");
        assert_eq!(found.subnets().next().unwrap().to_string(), "10.85.0.0/16");
    }

    #[test]
    fn what_libcni_refuses_says_why() {
        for (name, text, why) in [
            ("a.conf", "{", "no JSON"),
            ("a.conf", r#"{"name": "a", "plugins": []}"#, "no type"),
            ("a.conflist", r#"{"name": "a"}"#, "no plugins"),
            ("a.conflist", r#"{"name": "a", "plugins": []}"#, "no plugins"),
            ("a.conflist", r#"{"plugins": [{"type": "ptp"}]}"#, "no name"),
            ("a.conflist", r#"{"name": "a", "plugins": [{}]}"#, "no type"),
        ] {
            let error = network(name, text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn folder_of_containerd() {
        let of = |text: &str| containerd(text).folder;
        assert_eq!(of("[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = \"/a\"\n").as_deref(), Some("/a"));
        assert_eq!(
            of("  [plugins.\"io.containerd.grpc.v1.cri\".cni] # x\n    conf_dir = '/b'\n").as_deref(),
            Some("/b")
        );
        assert_eq!(of("[other]\nconf_dir = \"/c\"\n"), None);
        assert!(!containerd("disabled_plugins = [\"cri\"]\n").starts_pods);
        assert!(!containerd("disabled_plugins = [\n  \"io.containerd.grpc.v1.cri\",\n]\nversion = 2\n").starts_pods);
        assert!(containerd("disabled_plugins = []\n").starts_pods);
    }

    #[test]
    fn configuration_in_a_command_line() {
        assert_eq!(configuration_of("containerd\0--config\0/a\0"), Some("/a"));
        assert_eq!(configuration_of("containerd\0-l\0x\0--config=/b\0"), Some("/b"));
        assert_eq!(configuration_of("/usr/bin/containerd\0"), None);
        assert_eq!(configuration_of(""), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(text in "\\PC{0,200}") {
            let _ = (network("a.conf", &text), network("a.conflist", &text), containerd(&text), configuration_of(&text));
        }
    }
}
