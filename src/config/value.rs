//! From a TOML value, or the text of a flag or an environment variable, to a typed one.

use std::borrow::Cow;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use crate::telemetry;

/// A value before it has a type.
#[derive(Clone, Copy)]
pub(super) enum Raw<'a> {
    /// From the file.
    Toml(&'a DeValue<'a>),
    /// From a flag or the environment.
    Text(&'a str),
}

/// What else a value's meaning depends on.
pub(super) struct Context<'a> {
    /// Its key: sizes are known by their ending `_bytes`.
    pub(super) key: &'a str,
    /// What a relative path is relative to.
    pub(super) base: &'a Path,
}

/// A type that a key can have. The error says what would be right.
pub(super) trait Value: Sized {
    fn read(raw: Raw<'_>, context: &Context<'_>) -> Result<Self, String>;

    /// A default stands as if it were written in the file.
    fn at(self, _base: &Path) -> Self {
        self
    }
}

impl Raw<'_> {
    /// As text, if it is.
    pub(super) fn text(&self) -> Result<&str, String> {
        match self {
            Self::Toml(DeValue::String(text)) => Ok(text),
            Self::Toml(other) => Err(format!("must be text in quotes, is {}", kind(other))),
            Self::Text(text) => Ok(text),
        }
    }

    fn integer(&self, context: &Context<'_>) -> Result<u64, String> {
        let is_size = context.key.ends_with("_bytes");
        let wanted =
            if is_size { "a number of bytes, or one such as \"64MiB\"" } else { "a whole number from 0" };
        let parsed = match self {
            Self::Toml(DeValue::Integer(number)) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            Self::Toml(DeValue::String(text)) if is_size => size(text),
            Self::Toml(other) => return Err(format!("must be {wanted}, is {}", kind(other))),
            Self::Text(text) if is_size => size(text),
            Self::Text(text) => text.trim().parse().ok(),
        };
        parsed.ok_or_else(|| format!("must be {wanted}"))
    }
}

/// What a TOML value is, for people.
pub(super) fn kind(value: &DeValue<'_>) -> Cow<'static, str> {
    match value {
        DeValue::Table(_) => "a section".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::String(_) => "text".into(),
        DeValue::Integer(_) => "a number".into(),
        other => other.type_str().into(),
    }
}

/// Bytes: a number, and perhaps KiB, MiB, GiB or TiB.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Refuses what is outside.
pub(super) fn within<T: PartialOrd + Display>(value: &T, range: &RangeInclusive<T>) -> Result<(), String> {
    if range.contains(value) {
        Ok(())
    } else {
        Err(format!("must be {} to {}, is {value}", range.start(), range.end()))
    }
}

impl Value for bool {
    fn read(raw: Raw<'_>, _context: &Context<'_>) -> Result<Self, String> {
        let text = match raw {
            Raw::Toml(DeValue::Boolean(value)) => return Ok(*value),
            Raw::Toml(other) => return Err(format!("must be true or false, is {}", kind(other))),
            Raw::Text(text) => text.trim(),
        };
        text.parse().map_err(|_| "must be true or false".into())
    }
}

macro_rules! integers {
    ($($type:ty),+) => {$(
        impl Value for $type {
            fn read(raw: Raw<'_>, context: &Context<'_>) -> Result<Self, String> {
                let number = raw.integer(context)?;
                Self::try_from(number).map_err(|_| format!("must be at most {}, is {number}", Self::MAX))
            }
        }
    )+};
}
integers!(u32, u64, usize);

impl Value for i32 {
    fn read(raw: Raw<'_>, _: &Context<'_>) -> Result<Self, String> {
        let parsed = match raw {
            Raw::Toml(DeValue::Integer(number)) => Self::from_str_radix(number.as_str(), number.radix()).ok(),
            Raw::Toml(other) => return Err(format!("must be a whole number, is {}", kind(other))),
            Raw::Text(text) => text.trim().parse().ok(),
        };
        parsed.ok_or_else(|| "must be a whole number".into())
    }
}

impl Value for String {
    fn read(raw: Raw<'_>, _: &Context<'_>) -> Result<Self, String> {
        raw.text().map(str::to_owned)
    }
}

impl Value for PathBuf {
    /// In the file relative to it; in a flag or the environment relative to the working directory.
    fn read(raw: Raw<'_>, context: &Context<'_>) -> Result<Self, String> {
        match (raw.text()?, raw) {
            ("", _) => Err("must be a path".into()),
            (path, Raw::Toml(_)) => Ok(context.base.join(path)),
            (path, Raw::Text(_)) => Ok(path.into()),
        }
    }

    fn at(self, base: &Path) -> Self {
        base.join(self)
    }
}

impl Value for SocketAddr {
    fn read(raw: Raw<'_>, _: &Context<'_>) -> Result<Self, String> {
        let text = raw.text()?;
        text.parse().map_err(|_| {
            format!(
                "must be an IP address and port, such as \"127.0.0.1:7400\" or \"[::1]:7400\", is \"{text}\""
            )
        })
    }
}

impl Value for Option<SocketAddr> {
    fn read(raw: Raw<'_>, context: &Context<'_>) -> Result<Self, String> {
        if raw.text()? == "off" {
            return Ok(None);
        }
        SocketAddr::read(raw, context).map(Some).map_err(|text| format!("{text}; or \"off\""))
    }
}

impl Value for telemetry::Format {
    fn read(raw: Raw<'_>, _: &Context<'_>) -> Result<Self, String> {
        match raw.text()? {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(format!("must be \"human\" or \"json\", is \"{other}\"")),
        }
    }
}

impl Value for Vec<String> {
    fn read(raw: Raw<'_>, context: &Context<'_>) -> Result<Self, String> {
        let Raw::Toml(DeValue::Array(items)) = raw else {
            return Err("must be a list of texts, such as [\"a\", \"b\"]".into());
        };
        items.iter().map(|item| String::read(Raw::Toml(item.get_ref()), context)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("17", 17), ("64MiB", 64 << 20), ("4 GiB", 4 << 30), ("1KiB", 1024), ("2TiB", 2 << 40)]
        {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "64MB", "99999999999TiB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_sizes_take_units() {
        let base = Path::new("");
        let read = |key, text| u64::read(Raw::Text(text), &Context { key, base });
        assert_eq!(read("segment_bytes", "1KiB"), Ok(1024));
        assert!(read("window_ms", "1KiB").is_err());
        assert!(read("window_ms", "-1").is_err());
    }
}
