//! Reads keys of sections, from the file, the environment and flags, and collects what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::FormerStream;
use super::error::{ConfigError, ConfigErrors, Origin};
use super::value::{Context, Raw, Value, kind};

const PREFIX: &str = "MOORING_";
/// Variables that aren't keys: where the file is, what `mooring` shows to an admin port, and a short name.
const CONFIG_VARIABLE: &str = "MOORING_CONFIG";
const TOKEN_VARIABLE: &str = "MOORING_ADMIN_TOKEN";
const LOG_VARIABLE: &str = "MOORING_LOG";

/// What stands over the file: flags over the environment.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    environment: BTreeMap<String, String>,
    /// Key → name of the flag and value.
    flags: BTreeMap<String, (String, String)>,
}

impl Overrides {
    /// Takes the variables whose names begin with `MOORING_`: `MOORING_<SECTION>_<KEY>`, and `MOORING_LOG` for `log.filter`.
    pub fn from_env(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let environment = variables
            .into_iter()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .filter(|(name, _)| name.starts_with(PREFIX) && name != CONFIG_VARIABLE && name != TOKEN_VARIABLE)
            .map(
                |(name, value)| {
                    if name == LOG_VARIABLE { (variable("log.filter"), value) } else { (name, value) }
                },
            )
            .collect();
        Self { environment, flags: BTreeMap::new() }
    }

    /// Sets `key` (`device.plain`) by the flag `name` (`--plain`).
    pub fn flag(&mut self, name: &str, key: &str, value: &dyn std::fmt::Display) {
        self.flags.insert(key.to_owned(), (name.to_owned(), value.to_string()));
    }

    fn find(&self, key: &str) -> Option<(Origin, &str)> {
        if let Some((name, value)) = self.flags.get(key) {
            return Some((Origin::Flag(name.clone()), value));
        }
        let name = variable(key);
        self.environment.get(&name).map(|value| (Origin::Environment(name), &**value))
    }
}

/// The variable that stands for a key.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// One reading of one configuration.
pub(super) struct Reader<'a> {
    text: &'a str,
    file: PathBuf,
    overrides: &'a Overrides,
    errors: Vec<ConfigError>,
    /// Where each value that was read came from.
    origins: BTreeMap<String, Origin>,
    /// Keys asked for that a flag or variable may set.
    known: BTreeSet<String>,
    /// See [`super::Config::former_streams`].
    pub(super) former_streams: Vec<FormerStream>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, file: &Path, overrides: &'a Overrides) -> Self {
        let (file, origins, known) = (file.to_owned(), BTreeMap::new(), BTreeSet::new());
        Self { text, file, overrides, errors: Vec::new(), origins, known, former_streams: Vec::new() }
    }

    /// Takes an error of TOML's syntax.
    pub(super) fn syntax(&mut self, error: &toml::de::Error) {
        let origin = error.span().map_or(Origin::Nowhere, |span| self.line(span.start));
        self.errors.push(ConfigError { origin, key: String::new(), text: error.message().to_owned() });
    }

    /// Notes that something is wrong with a key, at the place where its value came from.
    pub(super) fn wrong(&mut self, key: &str, text: impl Into<String>) {
        let origin = self.origin(key);
        self.errors.push(ConfigError { origin, key: key.to_owned(), text: text.into() });
    }

    /// Where the value of a key came from.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Nowhere)
    }

    /// What a relative path in the file is relative to.
    fn base(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    fn line(&self, offset: usize) -> Origin {
        let newlines = self.text.match_indices('\n').take_while(|(at, _)| *at < offset).count();
        Origin::File(self.file.clone(), 1 + newlines)
    }

    /// Errors, or warnings about variables that name no key. They are no errors, as an orchestrator sets variables for a service
    /// called `mooring` that nobody asked for.
    pub(super) fn finish(mut self) -> Result<Vec<String>, ConfigErrors> {
        for (key, (flag, _)) in &self.overrides.flags {
            if !self.known.contains(key) {
                let text = format!("no such key{}", suggest(key, self.known.iter().map(String::as_str)));
                self.errors.push(ConfigError { origin: Origin::Flag(flag.clone()), key: key.clone(), text });
            }
        }
        if !self.errors.is_empty() {
            self.errors.sort();
            self.errors.dedup();
            return Err(ConfigErrors(self.errors));
        }
        let known: BTreeSet<String> = self.known.iter().map(|key| variable(key)).collect();
        let unknown = self.overrides.environment.keys().filter(|name| !known.contains(*name));
        Ok(unknown
            .map(|name| {
                format!("environment {name}: no such key{}", suggest(name, known.iter().map(String::as_str)))
            })
            .collect())
    }
}

/// One table of the file.
pub(super) struct Section<'r, 'a> {
    pub(super) reader: &'r mut Reader<'a>,
    table: Option<&'a DeTable<'a>>,
    path: String,
    known: Vec<&'static str>,
}

impl<'r, 'a> Section<'r, 'a> {
    /// A table; none if the file has none of this name.
    pub(super) fn new(
        reader: &'r mut Reader<'a>,
        table: Option<&'a DeTable<'a>>,
        path: impl Into<String>,
    ) -> Self {
        Self { reader, table, path: path.into(), known: Vec::new() }
    }

    /// The whole path of a key.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value as it stands in the file.
    pub(super) fn raw(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        let value = self.table?.get(key)?;
        let line = self.reader.line(value.span().start);
        self.reader.origins.insert(self.key(key), line);
        Some(value)
    }

    /// A value, or its default, which stands as if it were in the file. What is wrong is noted.
    pub(super) fn value<T: Value>(
        &mut self,
        key: &'static str,
        default: T,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> T {
        self.optional(key, check).unwrap_or_else(|| default.at(self.reader.base()))
    }

    /// A value, or what is wrong with it is noted; so is that it is missing.
    pub(super) fn required<T: Value>(&mut self, key: &'static str, example: &str) -> Option<T> {
        let before = self.reader.errors.len();
        let value = self.optional(key, |_| Ok(()));
        if value.is_none() && self.reader.errors.len() == before {
            let path = self.key(key);
            let origin = self.reader.origins.get(&self.path).cloned().unwrap_or(Origin::Nowhere);
            let text = format!("is missing; for instance: {key} = {example}");
            self.reader.errors.push(ConfigError { origin, key: path, text });
        }
        value
    }

    fn optional<T: Value>(
        &mut self,
        key: &'static str,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> Option<T> {
        let path = self.key(key);
        let in_file = self.raw(key);
        // Elements of lists can't be named by a flag or a variable.
        let over = if path.contains('[') { None } else { self.reader.overrides.find(&path) };
        self.reader.known.insert(path.clone());
        let raw = match (over, in_file) {
            (Some((origin, text)), _) => {
                self.reader.origins.insert(path.clone(), origin);
                Raw::Text(text)
            }
            (None, Some(value)) => Raw::Toml(value.get_ref()),
            (None, None) => return None,
        };
        match T::read(raw, &Context { key, base: self.reader.base() })
            .and_then(|value| check(&value).map(|()| value))
        {
            Ok(value) => Some(value),
            Err(text) => {
                self.reader.wrong(&path, text);
                None
            }
        }
    }

    /// A section within.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'_, 'a> {
        let path = self.key(key);
        let table = self.raw(key).and_then(|value| {
            let table = value.get_ref().as_table();
            if table.is_none() {
                self.reader
                    .wrong(&path, format!("must be a section, [{path}], is {}", kind(value.get_ref())));
            }
            table
        });
        Section::new(self.reader, table, path)
    }

    /// A list of sections within, each with its path.
    pub(super) fn list(&mut self, key: &'static str) -> Vec<(String, &'a DeTable<'a>)> {
        let path = self.key(key);
        let Some(value) = self.raw(key) else { return Vec::new() };
        let Some(items) = value.get_ref().as_array() else {
            self.reader.wrong(&path, format!("must be a list of sections, [[{path}]]"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (position, item) in items.iter().enumerate() {
            let element = format!("{path}[{position}]");
            let line = self.reader.line(item.span().start);
            self.reader.origins.insert(element.clone(), line);
            match item.get_ref().as_table() {
                Some(table) => tables.push((element, table)),
                None => self.reader.wrong(&element, format!("must be a section, [[{path}]]")),
            }
        }
        tables
    }

    /// Notes keys that were never asked for.
    pub(super) fn finish(self) {
        for (name, _) in self.table.into_iter().flatten() {
            let text = name.get_ref().as_ref();
            if !self.known.contains(&text) {
                let origin = self.reader.line(name.span().start);
                let suggestion = suggest(text, self.known.iter().copied());
                let (key, text) = (self.key(text), format!("no such key{suggestion}"));
                self.reader.errors.push(ConfigError { origin, key, text });
            }
        }
    }
}

/// "; did you mean …?", if something known is near.
pub(super) fn suggest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    known
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(name.len()) / 3)
        .min()
        .map(|(_, candidate)| format!("; did you mean `{candidate}`?"))
        .unwrap_or_default()
}

/// Levenshtein's, over bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_far_ones_not() {
        assert_eq!(suggest("hartbeat", ["heartbeat", "listen"].into_iter()), "; did you mean `heartbeat`?");
        assert_eq!(suggest("colour", ["heartbeat", "listen"].into_iter()), "");
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
