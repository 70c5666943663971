//! The configuration files that we ship are valid, and the documented one names every key with its default.

use std::{fs, path::Path};

use serde::Serialize;
use skiserver::{
    config::{Accounts, Config, Dns, Doors, Federation, Keys, Log, StoreSettings},
    limits::Limits,
};
use toml::{Table, Value};

fn shipped(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name)
}

/// The documented file with every key that is shown in a comment set: prose has a space after its `#`.
fn documented() -> String {
    let text = fs::read_to_string(shipped("skiserver.toml")).unwrap();
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Adds the path of every key in `value` to `keys`, as `[table.]key`.
fn keys_of(value: &Value, prefix: &str, keys: &mut Vec<String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                keys_of(value, &format!("{prefix}.{key}"), keys);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_table) => {
            for item in items {
                keys_of(item, prefix, keys);
            }
        }
        _ => keys.push(prefix.to_owned()),
    }
}

fn keys(value: &Value) -> Vec<String> {
    let mut keys = Vec::new();
    keys_of(value, "", &mut keys);
    keys.sort();
    keys
}

fn table(of: impl Serialize) -> Value {
    Value::try_from(of).unwrap()
}

#[test]
fn the_shipped_files_are_valid_as_they_are() {
    for name in ["skiserver.toml", "minimal.toml"] {
        let config = Config::load(&shipped(name)).unwrap();

        assert_eq!(config.domain, "example.org", "{name}");
    }
}

#[test]
fn the_documented_file_is_valid_with_every_key_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.toml");
    fs::write(&file, documented()).unwrap();

    let config = Config::load(&file).unwrap();

    let documented = Value::Table(documented().parse::<Table>().unwrap());
    let mut known = keys(&table(config));
    known.extend([
        ".codes.smtp.password".to_owned(),
        ".codes.webhook.bearer".to_owned(),
    ]);
    known.sort();
    assert_eq!(keys(&documented), known);
}

#[test]
fn the_documented_file_shows_the_true_defaults() {
    let documented = documented().parse::<Table>().unwrap();

    let defaults = [
        ("doors", table(Doors::default())),
        ("store", table(StoreSettings::default())),
        ("dns", table(Dns::default())),
        ("federation", table(Federation::default())),
        ("accounts", table(Accounts::default())),
        ("keys", table(Keys::default())),
        ("log", table(Log::default())),
        ("limits", table(Limits::default())),
    ];
    for (name, default) in defaults {
        assert_eq!(documented[name], default, "[{name}]");
    }
    assert_eq!(documented["operator"], Value::from(""));
}
