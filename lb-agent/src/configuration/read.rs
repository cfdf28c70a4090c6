//! From a file and flags to the typed configuration: the flags are put over the file's values before these get their
//! types, so that both go the same way.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value};

use super::{
    ConfigurationError, Kind, Problem,
    fields::{self, FIELDS, Field},
    file::{API_VERSION, KIND, KubeProxyConfiguration},
};

/// A flag of kube-proxy, as it was given. One that is a list may be given several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its name, without the dashes.
    pub name: &'static str,
    /// Its values.
    pub values: Vec<String>,
}

/// What file and flags say.
pub(super) struct Read {
    /// Without defaults.
    pub(super) configuration: KubeProxyConfiguration,
    /// Values of the file that flags took the place of: path and flag.
    pub(super) overridden: Vec<(&'static str, &'static str)>,
    /// Where a path was set, for messages.
    pub(super) origin: Origin,
}

/// Where values come from.
pub(super) struct Origin {
    /// Name of the file; empty where there is none.
    file: String,
    /// Paths that were set by flags.
    flags: BTreeMap<&'static str, &'static str>,
}

impl Origin {
    /// Where a message about a path says that it is.
    pub(super) fn of(&self, path: &str) -> String {
        let set = self.flags.iter().find(|(field, _)| {
            path.strip_prefix(**field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
        match set {
            Some((_, flag)) => dashed(flag),
            None if self.file.is_empty() => path.to_owned(),
            None => format!("--config {}: {path}", self.file),
        }
    }
}

/// A flag as it is typed.
pub(super) fn dashed(flag: &str) -> String {
    format!("{}{flag}", if flag.len() == 1 { "-" } else { "--" })
}

/// Reads a file, or none, and puts the flags over it.
pub(super) fn read(file: Option<&Path>, given: &[Flag]) -> Result<Read, ConfigurationError> {
    let name = file.map(|path| path.display().to_string()).unwrap_or_default();
    let mut origin = Origin { file: name, flags: BTreeMap::new() };
    let mut value = match file {
        None => Value::Object(Map::new()),
        Some(path) => {
            let text = fs::read_to_string(path)
                .map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
            parse(&text, &origin)?
        }
    };
    let mut overridden = Vec::new();
    let mut problems = Vec::new();
    for Flag { name, values } in given {
        for field in FIELDS.iter().filter(|field| field.flag == Some(name)) {
            match typed(field.kind, values) {
                Ok(new) => {
                    origin.flags.insert(field.path, name);
                    if set(&mut value, field.path, new) {
                        overridden.push((field.path, *name));
                    }
                }
                Err(what) => problems.push(Problem { place: dashed(name), what }),
            }
        }
    }
    if !problems.is_empty() {
        problems.dedup();
        return Err(ConfigurationError::Invalid(problems));
    }
    let configuration = serde_path_to_error::deserialize(value).map_err(|error| {
        ConfigurationError::Invalid(vec![Problem {
            place: origin.of(&error.path().to_string()),
            what: error.inner().to_string(),
        }])
    })?;
    Ok(Read { configuration, overridden, origin })
}

/// The values of a file, still without types.
fn parse(text: &str, origin: &Origin) -> Result<Value, ConfigurationError> {
    let problem =
        |what: String| ConfigurationError::Invalid(vec![Problem { place: format!("--config {}", origin.file), what }]);
    // Without the empty ones, which templates leave.
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| problem(error.without_snippet().to_string()))?;
    let found = documents.len();
    if found > 1 {
        return Err(problem(format!("found {found} documents, expected one")));
    }
    let mut value = documents.into_iter().next().unwrap_or_default();
    let expected = [("kind", KIND), ("apiVersion", API_VERSION)];
    for (field, expected) in expected {
        match &value[field] {
            Value::String(found) if found == expected => {}
            Value::String(found) if found == "ConfigMap" => {
                return Err(problem(format!(
                    "kind: found \"ConfigMap\", expected {expected:?}: the text of its data, in kubeadm's below config.conf"
                )));
            }
            Value::Null => return Err(problem(format!("{field}: found nothing, expected {expected:?}"))),
            found => return Err(problem(format!("{field}: found {found}, expected {expected:?}"))),
        }
    }
    normalize(&mut value, "");
    Ok(value)
}

/// Makes of a YAML value what Go's decoder would have seen in it: `null` is as good as absent, `yes` is a boolean, and a
/// number of bytes may lack its quotes.
fn normalize(value: &mut Value, path: &str) {
    let Value::Object(members) = value else { return };
    members.retain(|name, member| !(member.is_null() && is_known(&join(path, name))));
    for (name, member) in members.iter_mut() {
        let path = join(path, name);
        match (fields::at(&path).map(|field| field.kind), &*member) {
            (Some(Kind::Bool), Value::String(text)) => match text.to_ascii_lowercase().as_str() {
                "yes" | "on" | "y" => *member = Value::Bool(true),
                "no" | "off" | "n" => *member = Value::Bool(false),
                _ => {}
            },
            (Some(Kind::Quantity), Value::Number(number)) => *member = Value::String(number.to_string()),
            _ => normalize(member, &path),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Whether there is such a field, or fields below it.
fn is_known(path: &str) -> bool {
    let belongs =
        |field: &Field| field.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    FIELDS.iter().any(belongs)
}

/// Sets the value at a path. Whether another was there. Where something stands in the way, it has the wrong type, and is
/// left for that to be found.
fn set(value: &mut Value, path: &str, new: Value) -> bool {
    let Some(members) = value.as_object_mut() else { return false };
    match path.split_once('.') {
        Some((first, rest)) => set(members.entry(first).or_insert_with(|| Value::Object(Map::new())), rest, new),
        None => members.insert(path.to_owned(), new.clone()).is_some_and(|old| old != new),
    }
}

/// The value of a flag; the last one counts, unless it is a list.
fn typed(kind: Kind, values: &[String]) -> Result<Value, String> {
    let text = values.last().map_or("", String::as_str);
    let parts = || values.iter().flat_map(|value| value.split(',')).filter(|part| !part.is_empty());
    let expected = |text: &str, expected: &str| format!("found {text:?}, expected {expected}");
    match kind {
        Kind::Text | Kind::Duration | Kind::Quantity => Ok(Value::String(text.to_owned())),
        Kind::Bool => boolean(text).map(Value::Bool).ok_or_else(|| expected(text, "true or false")),
        Kind::Integer => match text.parse::<i64>() {
            Ok(number) => Ok(number.into()),
            Err(_) => Err(expected(text, "a whole number")),
        },
        Kind::Number => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number.into()),
            _ => Err(expected(text, "a number")),
        },
        Kind::Cidrs => Ok(parts().collect()),
        Kind::Gates => parts()
            .map(|part| {
                let (name, state) = part.split_once('=').ok_or_else(|| expected(part, "name=true or name=false"))?;
                let state = boolean(state.trim()).ok_or_else(|| expected(part, "name=true or name=false"))?;
                Ok((name.trim().to_owned(), Value::Bool(state)))
            })
            .collect::<Result<Map<_, _>, String>>()
            .map(Value::Object),
        Kind::Modules => parts()
            .map(|part| {
                let level = part.split_once('=').and_then(|(name, level)| Some((name, level.parse::<u32>().ok()?)));
                let (name, level) = level.ok_or_else(|| expected(part, "pattern=N"))?;
                Ok(serde_json::json!({"filePattern": name, "verbosity": level}))
            })
            .collect::<Result<Value, String>>(),
    }
}

/// What `strconv.ParseBool` of Go takes.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
