//! The binary as people run it: exit codes, messages, and what a broken bundle still answers.

mod lab;

use lab::{Bundle, code, json, netdiag, not_seen, stderr};

const TO_WEB: [&str; 4] = ["--to", "service/shop/web:80", "-o", "json"];

#[test]
fn a_cause_ends_with_1_and_is_named() {
    let bundle = Bundle::new();
    bundle.change("selector: {app: web}", "selector: {app: webb}");
    let output = bundle.diagnose(&TO_WEB);
    assert_eq!(code(&output), 1, "{output:?}");
    assert_eq!(json(&output)["causes"][0]["code"], "service_selects_no_pods");
}

#[test]
fn gaps_without_a_cause_end_with_3() {
    let output = Bundle::new().diagnose(&TO_WEB);
    assert_eq!(code(&output), 3, "no node was recorded, so nothing is known for sure: {output:?}");
    let answer = json(&output);
    assert_eq!(answer["causes"].as_array().map(Vec::len), Some(0));
    assert!(answer["not_seen"].as_array().is_some_and(|gaps| !gaps.is_empty()));
}

#[test]
fn a_broken_file_is_named_with_its_line_and_the_rest_is_answered() {
    let bundle = Bundle::new();
    bundle
        .write("objects/extra.yaml", "kind: Pod\nmetadata: {name: a, namespace: shop}\n---\nkind: Pod\nmetadata: [\n");
    bundle.write("nodes/n1.json", "{\n  \"wire\": 1,\n  oops\n}\n");
    let output = bundle.diagnose(&TO_WEB);
    assert_eq!(code(&output), 3, "{output:?}");
    let not_seen = not_seen(&json(&output)).join("\n");
    assert!(not_seen.contains("extra.yaml") && not_seen.contains("line "), "{not_seen}");
    assert!(not_seen.contains("line 3 of") && not_seen.contains("n1.json"), "{not_seen}");
}

#[test]
fn an_object_that_makes_no_sense_is_named_with_the_line_where_it_starts() {
    let bundle = Bundle::new();
    let items = "- kind: Pod\n  metadata: {name: a, namespace: shop}\n- kind: Service\n  metadata: {name: odd, namespace: shop}\n  \
                 spec: {ports: [{port: 70000}]}\n";
    bundle.write("objects/odd.yaml", &format!("apiVersion: v1\nitems:\n{items}kind: List\n"));
    let not_seen = not_seen(&json(&bundle.diagnose(&TO_WEB))).join("\n");
    assert!(not_seen.contains("line 5 of") && not_seen.contains("Service shop/odd"), "{not_seen}");
}

#[test]
fn a_kind_that_nobody_recorded_is_not_taken_for_empty() {
    let bundle = Bundle::new();
    std::fs::remove_file(bundle.path().join("objects/networkpolicies.yaml")).expect("it was written");
    let not_seen = not_seen(&json(&bundle.diagnose(&TO_WEB))).join("\n");
    assert!(not_seen.contains("networkpolicies of the cluster"), "{not_seen}");
}

#[test]
fn a_bundle_with_nothing_in_it_ends_with_2() {
    let empty = tempfile::tempdir().expect("a directory");
    let output = netdiag(&["diagnose", "--bundle", empty.path().to_str().expect("UTF-8"), "--to", "node/n1:80"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("holds no objects"), "{output:?}");
    let output = netdiag(&["diagnose", "--bundle", "/no/such/directory", "--to", "node/n1:80"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("/no/such/directory is not a directory"), "{output:?}");
}

#[test]
fn what_is_not_there_says_what_is() {
    let output = Bundle::new().diagnose(&["--to", "service/shop/wob:80"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("there is no Service shop/wob; there is shop/web"), "{}", stderr(&output));
}

#[test]
fn wrong_usage_ends_with_2_and_says_what_would_be_right() {
    let bundle = Bundle::new();
    for (arguments, says) in [
        (vec!["--to", "web"], "use service/NAMESPACE/NAME:PORT"),
        (vec!["--to", "node/n1:80", "--from", "web"], "use pod/NAMESPACE/NAME"),
        (vec!["--to", "node/n1:80", "--timeout", "soon"], "use a time such as"),
        (vec!["--to", "node/n1:80", "--direct"], "cannot be used with"),
    ] {
        let output = bundle.diagnose(&arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_rule_to_be_left_out_is_named_as_answers_name_it_and_nothing_is_sent() {
    let bundle = Bundle::new();
    let path = bundle.path();
    let trace = |more: &[&str]| {
        let words = ["trace", "--bundle", path.to_str().expect("UTF-8"), "--from", "node/n1", TO_WEB[0], TO_WEB[1]];
        netdiag(&[&words, more].concat())
    };
    for (more, says) in [
        (&["--without", "site fw 2"][..], "use FAMILY TABLE CHAIN HANDLE"),
        (&["--without", "inet site fw 2", "--armed"], "cannot be used with"),
        (&["--without", "inet site fw 2", "--counters"], "cannot be used with"),
    ] {
        let output = trace(more);
        assert_eq!(code(&output), 2, "{more:?}");
        assert!(stderr(&output).contains(says), "{more:?}: {}", stderr(&output));
    }
    let output = trace(&["--without", "inet site fw 2", "--without", "inet site fw handle 2", "-o", "json"]);
    assert_eq!(code(&output), 3, "no node was recorded: {output:?}");
    let what_if = &json(&output)["what_if"];
    let said = what_if["said"].as_str().unwrap_or_default();
    assert!(said.starts_with("predicted as if inet site fw rule 2 were not there; nothing was sent"), "{said}");
    assert_eq!(what_if["without"].as_array().map(Vec::len), Some(1));
    assert_eq!(what_if["without"][0]["effect"], "not_read");
}

#[test]
fn a_missing_kubeconfig_is_named_with_the_way_out() {
    let output = netdiag(&["diagnose", "--kubeconfig", "/no/such/config", "--to", "node/n1:80"]);
    assert_eq!(code(&output), 2);
    let message = stderr(&output);
    assert!(message.contains("/no/such/config") && message.contains("--bundle"), "{message}");
}

#[test]
fn what_was_recorded_with_an_answer_answers_the_same() {
    let bundle = Bundle::new();
    bundle.change("selector: {app: web}", "selector: {app: webb}");
    let kept = tempfile::tempdir().expect("a directory");
    let kept = kept.path().join("case");
    let kept = kept.to_str().expect("UTF-8");
    let first = bundle.diagnose(&[TO_WEB[0], TO_WEB[1], TO_WEB[2], TO_WEB[3], "--record", kept]);
    assert_eq!(code(&first), 1, "{}", stderr(&first));
    let again = netdiag(&["diagnose", "--bundle", kept, TO_WEB[0], TO_WEB[1], TO_WEB[2], TO_WEB[3]]);
    assert_eq!(json(&first), json(&again));
    let twice = bundle.diagnose(&[TO_WEB[0], TO_WEB[1], TO_WEB[2], TO_WEB[3], "--record", kept]);
    assert_eq!(code(&twice), 2);
    assert!(stderr(&twice).contains("is not empty"), "{}", stderr(&twice));
}

#[test]
fn explain_knows_every_code_and_names_them_when_asked_for_another() {
    let output = netdiag(&["explain", "service_selects_no_pods"]);
    assert_eq!(code(&output), 0);
    assert!(String::from_utf8_lossy(&output.stdout).contains("what to do"));
    let output = netdiag(&["explain", "service_selects_nothing"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("service_selects_no_pods"), "{output:?}");
}

#[test]
fn a_mesh_of_a_recorded_cluster_says_that_nothing_was_probed() {
    let bundle = Bundle::new();
    let path = bundle.path();
    let mesh = |more: &[&str]| netdiag(&[&["probe", "mesh", "--bundle", path.to_str().expect("UTF-8")], more].concat());
    let output = mesh(&["-o", "json"]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let answer = json(&output);
    assert_eq!((answer["schema"].as_str(), answer["status"].as_str()), (Some("netdiag.mesh/v1"), Some("unknown")));
    assert!(not_seen(&answer).iter().any(|gap| gap.contains("the mesh from node n1")), "{answer}");
    let svg = mesh(&["-o", "svg"]);
    assert!(String::from_utf8_lossy(&svg.stdout).starts_with("<svg "), "{svg:?}");
    for (arguments, says) in [
        (&["--mesh-target", "web"][..], "use NAME=ADDRESS:PORT"),
        (&["--loss-target", "200"], "0 to 100"),
        (&["-o", "svg", "--watch"], "leave out --watch"),
    ] {
        let output = mesh(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_probe_of_a_recorded_cluster_ends_with_3_and_wrong_words_with_2() {
    let bundle = Bundle::new();
    let path = bundle.path();
    let path = path.to_str().expect("UTF-8");
    let probe = |words: &[&str]| netdiag(&[&["probe"], words, &["--from", "node/n1", "--bundle", path]].concat());
    let output = probe(&["tcp", "--to", "service/shop/web:80", "-o", "json"]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let answer = json(&output);
    assert_eq!((answer["schema"].as_str(), answer["status"].as_str()), (Some("netdiag.probe/v1"), Some("unknown")));
    assert!(not_seen(&answer).iter().any(|gap| gap.contains("a bundle cannot send packets")), "{answer}");
    for (words, says) in [
        (&["tcp", "--to", "service/shop/wob:80"][..], "there is no Service shop/wob"),
        (&["tcp", "--to", "[fe80::1%eth0]:80"], "is not a target"),
        (&["tcp", "--to", "10.0.0.1"], "names no port"),
        (&["icmp", "--to", "10.0.0.1", "-c", "0"], "the count of attempts is 0"),
        (&["tls", "--to", "10.0.0.1:443", "--secret", "web"], "NAMESPACE/NAME"),
        (&["path", "--to", "10.0.0.1", "--by", "sctp"], "sctp"),
    ] {
        let output = probe(words);
        assert_eq!(code(&output), 2, "{words:?}");
        assert!(stderr(&output).contains(says), "{words:?}: {}", stderr(&output));
    }
}
