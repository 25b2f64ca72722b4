//! The `%` codes that mean something for an egress proxy, and their names.

/// A `%` code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Code {
    Percent,
    /// The line's number, from 0.
    Sequence,
    /// A user's name: nobody logs in here.
    User,
    Connection(Connection),
    Time(Time),
    Request(Request),
    Answer(Answer),
    Note(Note),
}

/// Who spoke with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    ClientAddress,
    ClientPort,
    /// The address that the client dialled, which squid, too, logs as its own side of an intercepted connection.
    OriginalAddress,
    OriginalPort,
    ServerAddress,
    ServerName,
    ServerPort,
    /// The name in the ClientHello.
    ServerNameIndication,
}

/// When, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Time {
    EpochSeconds,
    Subsecond,
    /// In the local zone, by this strftime(3) format.
    Local(String),
    /// In UTC, by this strftime(3) format.
    Utc(String),
    /// How long it took.
    Response,
    Start,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Method,
    /// The URL cleaned for the log: `%ru`.
    CleanUrl,
    /// The URL as it came: `%>ru`.
    Url,
    Scheme,
    Domain,
    Port,
    Path,
    Version,
    /// As `Version`, absent where there was no request.
    RealVersion,
    Referer,
    UserAgent,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Status,
    Tag,
    Hierarchy,
    Error,
    /// The media type without its parameters.
    MimeType,
    /// The whole header.
    ContentType,
    Sent,
    Received,
    Total,
}

/// What squid has no word for, as the annotations `%{name}note`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Note {
    Namespace,
    Workload,
    Cgroup,
    Pid,
    Uid,
    Command,
    Protocol,
    Outcome,
    Rule,
    Enforced,
    Ending,
    Address,
}

/// Which argument in braces a code takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument {
    /// squid ignores one: here it is an error.
    Never,
    /// A strftime(3) format, optional.
    Time,
    /// The name of a header or annotation.
    Name,
}

/// Formats for `%tl` and `%tg` without an argument.
const LOCAL_TIME: &str = "%d/%b/%Y:%H:%M:%S %z";
const UTC_TIME: &str = "%d/%b/%Y:%H:%M:%S";

/// The names in the order in which they are tried: no name stands behind one that it begins with.
pub(super) const NAMES: &[&str] = &[
    "err_code",
    "note",
    "ssl::>sni",
    "tls::>sni",
    ">la",
    ">lp",
    "ts",
    "tu",
    "tl",
    "tg",
    "tS",
    "tr",
    "un",
    "ul",
    "ui",
    "ue",
    ">Hs",
    "Hs",
    "Ss",
    "Sh",
    "mt",
    ">rm",
    ">ru",
    ">rs",
    ">rd",
    ">rP",
    ">rp",
    ">rv",
    "rm",
    "ru",
    "rp",
    "rv",
    "<rm",
    "<ru",
    "<rs",
    "<rd",
    "<rP",
    "<rp",
    "<rv",
    ">st",
    "<st",
    "st",
    "sn",
    ">a",
    ">p",
    ">A",
    "<a",
    "<p",
    "<A",
    ">h",
    "<h",
    "%",
];

/// The names that `%{name}>h` accepts.
pub(super) const REQUEST_HEADERS: &str = "Referer, User-Agent";
/// The names that `%{name}<h` accepts.
pub(super) const REPLY_HEADERS: &str = "Content-Type";

/// The argument that a name of [`NAMES`] takes.
pub(super) fn argument_of(name: &str) -> Argument {
    match name {
        "tl" | "tg" => Argument::Time,
        ">h" | "<h" | "note" => Argument::Name,
        _ => Argument::Never,
    }
}

impl Code {
    /// The code with this name of [`NAMES`] and argument; none if the argument is not one that it accepts.
    pub(super) fn new(name: &str, argument: Option<&str>) -> Option<Self> {
        Some(match name {
            "%" => Self::Percent,
            "sn" => Self::Sequence,
            "un" | "ul" | "ui" | "ue" => Self::User,
            "tl" => Self::Time(Time::Local(argument.unwrap_or(LOCAL_TIME).to_owned())),
            "tg" => Self::Time(Time::Utc(argument.unwrap_or(UTC_TIME).to_owned())),
            "ts" => Self::Time(Time::EpochSeconds),
            "tu" => Self::Time(Time::Subsecond),
            "tr" => Self::Time(Time::Response),
            "tS" => Self::Time(Time::Start),
            ">h" => Self::Request(Request::header(argument?)?),
            "<h" => Self::Answer(Answer::header(argument?)?),
            "note" => Self::Note(Note::new(argument?)?),
            _ => {
                let connection = Connection::new(name).map(Self::Connection);
                let request = || Request::new(name).map(Self::Request);
                let answer = || Answer::new(name).map(Self::Answer);
                return connection.or_else(request).or_else(answer);
            }
        })
    }

    /// Whether the value is percent-encoded if nothing else is asked.
    pub(super) const fn protects_itself(&self) -> bool {
        match self {
            Self::Note(_) => true,
            Self::Request(request) => match request {
                Request::Method
                | Request::Url
                | Request::Scheme
                | Request::Domain
                | Request::Path
                | Request::Referer
                | Request::UserAgent => true,
                Request::CleanUrl | Request::Port | Request::Version | Request::RealVersion => false,
            },
            Self::Answer(answer) => matches!(answer, Answer::ContentType),
            Self::Percent | Self::Sequence | Self::User | Self::Connection(_) | Self::Time(_) => false,
        }
    }
}

impl Connection {
    fn new(name: &str) -> Option<Self> {
        Some(match name {
            // No reverse look-ups are made: squid, too, falls back on the address.
            ">a" | ">A" => Self::ClientAddress,
            ">p" => Self::ClientPort,
            ">la" => Self::OriginalAddress,
            ">lp" => Self::OriginalPort,
            "<a" => Self::ServerAddress,
            "<A" => Self::ServerName,
            "<p" => Self::ServerPort,
            "ssl::>sni" | "tls::>sni" => Self::ServerNameIndication,
            _ => return None,
        })
    }
}

impl Request {
    /// Nothing is rewritten on the way: what came from the client (`>`) is what goes to the origin (`<`).
    fn new(name: &str) -> Option<Self> {
        Some(match name {
            "rm" | ">rm" | "<rm" => Self::Method,
            "ru" => Self::CleanUrl,
            ">ru" | "<ru" => Self::Url,
            ">rs" | "<rs" => Self::Scheme,
            ">rd" | "<rd" => Self::Domain,
            ">rP" | "<rP" => Self::Port,
            "rp" | ">rp" | "<rp" => Self::Path,
            "rv" => Self::Version,
            ">rv" | "<rv" => Self::RealVersion,
            _ => return None,
        })
    }

    fn header(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("referer") {
            Some(Self::Referer)
        } else if name.eq_ignore_ascii_case("user-agent") {
            Some(Self::UserAgent)
        } else {
            None
        }
    }
}

impl Answer {
    fn new(name: &str) -> Option<Self> {
        Some(match name {
            ">Hs" | "Hs" => Self::Status,
            "Ss" => Self::Tag,
            "Sh" => Self::Hierarchy,
            "mt" => Self::MimeType,
            "err_code" => Self::Error,
            "<st" => Self::Sent,
            ">st" => Self::Received,
            "st" => Self::Total,
            _ => return None,
        })
    }

    fn header(name: &str) -> Option<Self> {
        name.eq_ignore_ascii_case("content-type")
            .then_some(Self::ContentType)
    }
}

impl Note {
    const ALL: [(&'static str, Self); 12] = [
        ("namespace", Self::Namespace),
        ("workload", Self::Workload),
        ("cgroup", Self::Cgroup),
        ("pid", Self::Pid),
        ("uid", Self::Uid),
        ("command", Self::Command),
        ("protocol", Self::Protocol),
        ("outcome", Self::Outcome),
        ("rule", Self::Rule),
        ("enforced", Self::Enforced),
        ("ending", Self::Ending),
        ("address", Self::Address),
    ];

    fn new(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, note)| note)
    }

    /// The names that `%{name}note` accepts.
    pub(super) fn names() -> String {
        let names: Vec<_> = Self::ALL.iter().map(|&(name, _)| name).collect();
        names.join(", ")
    }
}
