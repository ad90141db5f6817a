//! What a device is bound to, what it may change about itself, and what is told of it.
//!
//! Invariants: a device has at most one account and one phone number, and bounded numbers of aliases and tags; a step that is taken
//! changes something, so that every step is one event.
//!
//! The edge acts on the account only: what was resolved from an account ends when that account goes. Aliases, tags and the phone number are
//! the router's to resolve; here they are kept and told.

use std::sync::Arc;

use crate::ids::AppKey;
use crate::limits;
use crate::push::{Attributes, Millis};

/// One thing that a device can be bound to.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Binding {
    /// Who is logged in; one a device.
    Account(Arc<str>),
    /// A name that the app's backend knows it by.
    Alias(Arc<str>),
    /// A group.
    Tag(Arc<str>),
    /// A phone number; one a device.
    Phone(Arc<str>),
}

impl Binding {
    /// The word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Account(_) => "account",
            Self::Alias(_) => "alias",
            Self::Tag(_) => "tag",
            Self::Phone(_) => "phone",
        }
    }

    /// What it is bound to.
    pub fn text(&self) -> &Arc<str> {
        match self {
            Self::Account(text) | Self::Alias(text) | Self::Tag(text) | Self::Phone(text) => text,
        }
    }

    /// Whether it is an account.
    pub fn is_account(&self) -> bool {
        matches!(self, Self::Account(_))
    }
}

/// What is to be bound no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unbind {
    /// This account, if it is the one.
    Account(Arc<str>),
    /// This alias.
    Alias(Arc<str>),
    /// This tag.
    Tag(Arc<str>),
    /// The phone number, whichever it is.
    Phone,
}

/// Whether `text` can be an account, an alias, a tag or a phone number: 1 to 128 bytes without control characters.
pub fn is_bindable(text: &str) -> bool {
    (1..=limits::BINDING_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// A binding that comes or goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// It comes.
    pub bound: bool,
    /// Which.
    pub binding: Binding,
}

/// All that a device is bound to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bindings {
    /// Who is logged in.
    pub account: Option<Arc<str>>,
    /// The phone number.
    pub phone: Option<Arc<str>>,
    /// At most [`limits::ALIASES`], in the order of binding.
    pub aliases: Vec<Arc<str>>,
    /// At most [`limits::TAGS`], in the order of binding.
    pub tags: Vec<Arc<str>>,
}

impl Bindings {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.account.is_none() && self.phone.is_none() && self.aliases.is_empty() && self.tags.is_empty()
    }

    /// The steps that a Bind means: none if it stands already; where only one may be, the former goes first.
    pub fn bind(&self, binding: &Binding) -> Result<Vec<Step>, ChangeError> {
        let bound = || Step { bound: true, binding: binding.clone() };
        let only = |former: Option<&Arc<str>>, text: &Arc<str>, make: fn(Arc<str>) -> Binding| match former {
            None => vec![bound()],
            Some(former) if former == text => Vec::new(),
            Some(former) => vec![Step { bound: false, binding: make(former.clone()) }, bound()],
        };
        let among = |known: &[Arc<str>], text: &Arc<str>, max: usize| {
            if known.contains(text) {
                Ok(Vec::new())
            } else if known.len() >= max {
                Err(ChangeError::TooMany(max))
            } else {
                Ok(vec![bound()])
            }
        };
        match binding {
            Binding::Account(text) => Ok(only(self.account.as_ref(), text, Binding::Account)),
            Binding::Phone(text) => Ok(only(self.phone.as_ref(), text, Binding::Phone)),
            Binding::Alias(text) => among(&self.aliases, text, limits::ALIASES),
            Binding::Tag(text) => among(&self.tags, text, limits::TAGS),
        }
    }

    /// The step that an Unbind means; none if it isn't bound.
    pub fn unbind(&self, what: &Unbind) -> Option<Step> {
        let binding = match what {
            Unbind::Account(text) => {
                (self.account.as_ref() == Some(text)).then(|| Binding::Account(text.clone()))
            }
            Unbind::Phone => self.phone.clone().map(Binding::Phone),
            Unbind::Alias(text) => self.aliases.contains(text).then(|| Binding::Alias(text.clone())),
            Unbind::Tag(text) => self.tags.contains(text).then(|| Binding::Tag(text.clone())),
        };
        binding.map(|binding| Step { bound: false, binding })
    }

    /// Takes a step.
    pub fn apply(&mut self, step: &Step) {
        let text = step.binding.text();
        let among = |known: &mut Vec<Arc<str>>| {
            known.retain(|other| other != text);
            if step.bound {
                known.push(text.clone());
            }
        };
        match &step.binding {
            Binding::Account(_) => self.account = step.bound.then(|| text.clone()),
            Binding::Phone(_) => self.phone = step.bound.then(|| text.clone()),
            Binding::Alias(_) => among(&mut self.aliases),
            Binding::Tag(_) => among(&mut self.tags),
        }
    }
}

/// What a session's device changes about itself. Answered by one Reply, when durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// What the receipt log says of it, and the push switch if it said.
    Attributes {
        /// In place of the former ones.
        attributes: Attributes,
        /// The push switch.
        push_on: Option<bool>,
    },
    /// The push switch.
    Push(bool),
    /// Bind.
    Bind(Binding),
    /// Bind no more.
    Unbind(Unbind),
    /// It goes on from another address. Kept in memory only.
    Moved(std::net::IpAddr),
}

/// Why nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// So many are bound already: the device has to unbind one.
    #[error("{0} of them are bound already")]
    TooMany(usize),
    /// No room at present, in the queue or on the disk.
    #[error("the edge has no room for it at present")]
    Exhausted,
}

/// What happened to a device, self-contained, as routers are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceEvent {
    /// The app.
    pub app: AppKey,
    /// The device.
    pub device_id: Arc<str>,
    /// When.
    pub time: Millis,
    /// What.
    pub change: DeviceChange,
}

/// One change of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceChange {
    /// It is known from now on, with push on unless a switch follows, and bound to nothing.
    Registered(Attributes),
    /// Its attributes changed to these.
    Attributes(Attributes),
    /// The push switch is on, or off.
    Switch(bool),
    /// It is bound to this.
    Bound(Binding),
    /// And to this no more.
    Unbound(Binding),
    /// It was unseen for too long, and is known no more.
    Forgotten {
        /// When it was last seen.
        last_active: Millis,
    },
}

impl DeviceChange {
    /// The words, in the order of the protocol.
    pub const LABELS: [&'static str; 6] =
        ["registered", "attributes", "switch", "bound", "unbound", "forgotten"];

    /// Its place among [`Self::LABELS`].
    pub fn index(&self) -> usize {
        match self {
            Self::Registered(_) => 0,
            Self::Attributes(_) => 1,
            Self::Switch(_) => 2,
            Self::Bound(_) => 3,
            Self::Unbound(_) => 4,
            Self::Forgotten { .. } => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(bindings: &mut Bindings, steps: &[Step]) -> Vec<String> {
        for step in steps {
            bindings.apply(step);
        }
        let word = |step: &Step| {
            let sign = if step.bound { '+' } else { '-' };
            format!("{sign}{} {}", step.binding.kind(), step.binding.text())
        };
        steps.iter().map(word).collect()
    }

    #[test]
    fn the_last_account_and_phone_win_and_repeats_change_nothing() {
        let mut all = Bindings::default();
        for make in [Binding::Account, Binding::Phone] {
            let kind = make("a".into()).kind();
            let steps = all.bind(&make("a".into())).expect("room");
            assert_eq!(take(&mut all, &steps), [format!("+{kind} a")]);
            assert_eq!(all.bind(&make("a".into())), Ok(Vec::new()));
            let steps = all.bind(&make("b".into())).expect("room");
            assert_eq!(take(&mut all, &steps), [format!("-{kind} a"), format!("+{kind} b")]);
        }
        assert_eq!(all.unbind(&Unbind::Account("a".into())), None, "it isn't the one");
        let steps = [all.unbind(&Unbind::Account("b".into())), all.unbind(&Unbind::Phone)];
        take(&mut all, &steps.map(|step| step.expect("bound")));
        assert!(all.is_empty() && all.unbind(&Unbind::Phone).is_none());
    }

    #[test]
    fn aliases_and_tags_are_bounded() {
        let mut all = Bindings::default();
        for n in 0..limits::TAGS {
            for binding in [Binding::Tag(n.to_string().into()), Binding::Alias(n.to_string().into())] {
                let steps = all.bind(&binding).expect("room");
                assert_eq!(take(&mut all, &steps).len(), 1);
            }
        }
        for make in [Binding::Tag, Binding::Alias] {
            assert_eq!(all.bind(&make("one more".into())), Err(ChangeError::TooMany(128)));
            assert_eq!(all.bind(&make("7".into())), Ok(Vec::new()), "it stands already");
        }
        let step = all.unbind(&Unbind::Tag("7".into())).expect("bound");
        take(&mut all, &[step]);
        assert_eq!(all.bind(&Binding::Tag("one more".into())).map(|steps| steps.len()), Ok(1));
        assert_eq!((all.tags.len(), all.aliases.len()), (127, 128));
    }

    #[test]
    fn what_can_be_bound_has_a_length_and_no_control_characters() {
        for good in ["a", "阿里", &"x".repeat(128), "+86 138-0000-0000"] {
            assert!(is_bindable(good), "{good}");
        }
        for bad in ["", &"x".repeat(129), "a\nb", "\u{7f}", "\u{85}"] {
            assert!(!is_bindable(bad), "{bad:?}");
        }
    }
}
