//! The texts: a kubelet's command line, and its configuration as YAML or JSON.

use serde_json::Value;

/// What of a command line matters here.
#[derive(Debug, Default)]
pub(super) struct Flags<'c> {
    pub(super) config: Option<&'c str>,
    pub(super) config_dir: Option<&'c str>,
    pub(super) cluster_dns: Option<Vec<String>>,
    pub(super) cluster_domain: Option<&'c str>,
    pub(super) resolv_conf: Option<&'c str>,
}

/// `--name=value` or `--name value`, the last of several counts, and lists add up; `_` is the same as `-` (component-base,
/// `WordSepNormalizeFunc`).
pub(super) fn flags(command: &str) -> Flags<'_> {
    let mut found = Flags::default();
    let mut words = command.split('\0').skip(1);
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else { continue };
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let name = name.replace('_', "-");
        let known = ["config", "config-dir", "cluster-dns", "cluster-domain", "resolv-conf"];
        if !known.contains(&name.as_str()) {
            continue;
        }
        let Some(value) = value.or_else(|| words.next()) else { break };
        match name.as_str() {
            "config" => found.config = Some(value),
            "config-dir" => found.config_dir = Some(value),
            "cluster-domain" => found.cluster_domain = Some(value),
            "resolv-conf" => found.resolv_conf = Some(value),
            _ => found.cluster_dns.get_or_insert_default().extend(value.split(',').map(str::to_owned)),
        }
    }
    found
}

/// What one file says; what it does not name is left to others.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) cluster_dns: Option<Vec<String>>,
    pub(super) cluster_domain: Option<String>,
    pub(super) resolv_conf: Option<String>,
}

/// The error is why the kubelet could not use it either.
pub(super) fn file(text: &str) -> Result<File, String> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| format!("no YAML: {error}"))?;
    let word = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) => Ok(Some(word.clone())),
        Some(_) => Err(format!("its {key} is no word")),
    };
    let cluster_dns = match value.get("clusterDNS") {
        None | Some(Value::Null) => None,
        Some(Value::Array(list)) => {
            let words = list.iter().map(|item| item.as_str().map(str::to_owned));
            Some(words.collect::<Option<Vec<_>>>().ok_or("its clusterDNS is no list of words")?)
        }
        Some(_) => return Err("its clusterDNS is no list".to_owned()),
    };
    Ok(File { cluster_dns, cluster_domain: word("clusterDomain")?, resolv_conf: word("resolvConf")? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What command lines and files are made of, and what stands where it does not belong.
    fn word() -> impl Strategy<Value = &'static str> {
        let words = "--config|--cluster_dns|--cluster-dns=|--resolv-conf|\0|=|,|10.96.0.10|clusterDNS|clusterDomain|\
            resolvConf|: |\n|\n  |- |[|]|{|}|&a |*a |\"|'|#|null|7|---\n";
        prop::sample::select(words.split('|').collect::<Vec<_>>())
    }

    /// Nothing is told that was not in the text.
    fn keeps_within(text: &str) {
        let flags = flags(text);
        let paths = [flags.config, flags.config_dir, flags.cluster_domain, flags.resolv_conf];
        let servers = flags.cluster_dns.iter().flatten().map(String::len);
        assert!(paths.into_iter().flatten().map(str::len).chain(servers).sum::<usize>() <= text.len(), "{flags:?}");
        let _ = file(text);
    }

    proptest! {
        #[test]
        fn any_text_ends(text in "(?s).{0,200}") {
            keeps_within(&text);
        }

        #[test]
        fn any_words_end(words in prop::collection::vec(word(), 0..40)) {
            keeps_within(&words.concat());
        }

        #[test]
        fn any_value_is_a_setting_or_why_it_is_none(
            servers in prop::collection::vec("[0-9a-f.:]{1,12}", 0..4),
            odd in prop::sample::select(vec!["7", "true", "{}", "[[]]", "[1]"]),
        ) {
            let listed = servers.iter().map(|server| format!("- {server:?}\n")).collect::<Vec<_>>().concat();
            let found = file(&format!("clusterDomain: a\nclusterDNS:\n{listed}")).unwrap();
            prop_assert_eq!(found.cluster_domain.as_deref(), Some("a"));
            prop_assert_eq!(found.cluster_dns.unwrap_or_default(), servers);
            for key in ["clusterDNS", "clusterDomain", "resolvConf"] {
                let why = file(&format!("{key}: {odd}\n")).unwrap_err();
                prop_assert!(why.contains(key), "{why}");
            }
        }
    }
}
