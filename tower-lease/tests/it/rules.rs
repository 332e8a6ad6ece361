//! `RULES.md` is true: each rule has its tests or its reason, and each test that it names exists.

use std::{collections::BTreeSet, fs, path::Path};

const RULES: &str = include_str!("../../RULES.md");

/// All Rust files under a folder of this crate, each with its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((
                    path.display().to_string(),
                    fs::read_to_string(&path).unwrap(),
                ));
            }
        }
    }
    found
}

/// The names of all functions there are.
fn functions() -> BTreeSet<String> {
    let all = sources("src").into_iter().chain(sources("tests"));
    all.flat_map(|(_, text)| names_after("fn ", &text))
        .collect()
}

fn names_after(word: &str, text: &str) -> Vec<String> {
    let rests = text.split(word).skip(1);
    rests
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect()
        })
        .collect()
}

/// Each rule's paragraph.
fn rules() -> Vec<(&'static str, &'static str)> {
    let paragraphs = RULES
        .split("\n\n")
        .filter(|paragraph| paragraph.starts_with("**"));
    paragraphs
        .filter_map(|paragraph| paragraph[2..].split_once("** "))
        .collect()
}

/// What stands in backticks and looks like a test.
fn tests_named_in(paragraph: &str) -> Vec<&str> {
    let quoted = paragraph.split('`').skip(1).step_by(2);
    quoted
        .filter(|name| name.len() > 12 && name.contains('_') && !name.contains([' ', ':']))
        .collect()
}

#[test]
fn every_rule_is_there_once() {
    let named: Vec<_> = rules()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("R-"))
        .collect();
    let expected: Vec<_> = (1..=33).map(|number| format!("R-{number}")).collect();
    assert_eq!(named, expected);
}

#[test]
fn every_rule_has_a_test_or_a_reason_for_none() {
    for (rule, text) in rules() {
        assert!(
            !tests_named_in(text).is_empty() || text.contains("No test"),
            "{rule}"
        );
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let functions = functions();
    for (rule, text) in rules() {
        for test in tests_named_in(text) {
            assert!(
                functions.contains(test),
                "{rule} names `{test}`, which is not there"
            );
        }
    }
}

#[test]
fn a_test_cites_only_rules_that_there_are() {
    for name in functions() {
        let cited = name
            .split('_')
            .map_while(|part| part.strip_prefix('r')?.parse::<u32>().ok());
        assert!(cited.clone().all(|rule| (1..=33).contains(&rule)), "{name}");
    }
}

#[test]
fn r4_nothing_here_asks_for_the_wall_clock() {
    for (path, text) in sources("src") {
        let uses = text.matches("SystemTime").count();
        // One import and one use: what differs between a process and its fork goes into the salt of its random numbers.
        let allowed = if path.ends_with("src/record.rs") {
            2
        } else {
            0
        };
        assert_eq!(uses, allowed, "{path} asks for the wall clock");
        assert!(
            !text.contains("std::time::Instant"),
            "{path} asks for a clock that stops in suspend"
        );
    }
}
