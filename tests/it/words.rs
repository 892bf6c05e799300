//! The words of the program, counted: its names say an object beside a verb, its comments have a technical subject.
//!
//! Each measure has a goal and a limit; the limits, in `words_limits.txt`, only fall. The table is printed by
//! `cargo test --test it words -- --nocapture`, the offenders of a measure by `WORDS=functions` before it, and
//! `UPDATE_LIMITS=1` before it lowers the limits.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::{Display, Write};
use std::path::Path;
use std::process::Command;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Ident, Lit, Meta, Type, Visibility};

use crate::source_tree::{SourceFile, line_range, parse_sources, read_sources};

const LIMITS_FILE: &str = "tests/it/words_limits.txt";

/// Functions whose one word is the language's or the field's, and says enough.
const KNOWN_FUNCTIONS: &[&str] = &[
    "new",
    "default",
    "fmt",
    "from",
    "drop",
    "clone",
    "eq",
    "hash",
    "deref",
    "next",
    "main",
    "poll",
    "call",
    "try_from",
    "from_str",
    "as_str",
    "into",
    "len",
    "is_empty",
    "get",
    "run",
    "start",
    "build",
    "parse",
    "encode",
    "decode",
    "read",
    "write",
    "name",
    "push",
    "pop",
    "insert",
    "remove",
    "contains",
    "iter",
    "send",
    "recv",
    "close",
    "open",
    "serve",
    "reconcile",
    "validate",
    "apply",
];

/// Types whose one word is the language's, and clap's.
const KNOWN_TYPES: &[&str] = &["Error", "Result", "Err", "Output", "Target", "Item", "Response", "Future", "Arguments"];

const KNOWN_CONSTANTS: &[&str] = &["ALL"];

/// Modules whose constants are written with the module before them: `code::OVER_QUOTA`.
const QUALIFIED_MODULES: &[&str] = &["code", "name", "condition"];

/// Last words of a constant that is a `Duration`. Beside the bounds of a wait: `MAX` for the longest back-off, `WINDOW`
/// for the time over which something is counted, `AGE` for how old something may be.
const DURATION_SUFFIXES: &[&str] = &["TIMEOUT", "INTERVAL", "DELAY", "TTL", "BACKOFF", "GRACE", "MAX", "WINDOW", "AGE"];

/// First words of a sentence that has no technical noun for its subject.
const PRONOUNS: &[&str] = &["What", "Who", "Whose", "Whoever", "Those", "Where"];

/// Forms of a verb that stood for publish, report, notify, admit and more.
const TELL_FORMS: &[&str] = &["tell", "tells", "telling", "told"];

const FILLER_PREFIXES: &[&str] = &["get_", "do_", "handle_", "process_", "perform_"];
const FILLER_SUFFIXES: &[&str] = &["_data", "_info", "_value", "_inner"];

/// Words of a doc comment that only repeats a name.
const SHORT_COMMENT_WORDS: usize = 3;

/// Characters of a commit's subject.
const SUBJECT_CHARS_MAX: usize = 72;

/// Commits up to this one keep their subjects.
const FIRST_COMMIT: &str = "8cafedf";

/// A figure: tenths of a percent of a share, or a count.
type Figure = u64;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Unit {
    Share,
    Count,
}

/// A row of the table. The key stands in the file of limits and chooses offenders to print.
struct Measure {
    key: &'static str,
    title: &'static str,
    unit: Unit,
    goal: Figure,
}

const fn share(key: &'static str, title: &'static str, goal: Figure) -> Measure {
    Measure { key, title, unit: Unit::Share, goal }
}

const fn count(key: &'static str, title: &'static str) -> Measure {
    Measure { key, title, unit: Unit::Count, goal: 0 }
}

const MEASURES: &[Measure] = &[
    share("functions", "function names of one word", 400),
    share("types", "type names of one word", 450),
    share("constants", "constants of one word", 200),
    share("pronouns", "doc sentences that begin with What/Who/Whose/Whoever/Those/Where", 10),
    share("tell", "doc sentences with tell/told", 3),
    count("short_comments", "doc comments of three words or fewer"),
    share("repeated_types", "methods that repeat their type's last word", 70),
    share("fillers", "function names with fillers", 20),
    count("ambiguous_types", "public types whose name another of their room has"),
    count("durations", "durations without their kind of bound at the end"),
    count("subjects", "commit subjects over 72 characters"),
];

/// Offenders of one measure, among all that it counts.
#[derive(Default)]
struct Tally {
    total: usize,
    offenders: Vec<String>,
}

impl Tally {
    fn add(&mut self, is_offender: bool, offender: impl FnOnce() -> String) {
        self.total += 1;
        if is_offender {
            self.offenders.push(offender());
        }
    }
}

/// Tallies by the keys of their measures.
#[derive(Default)]
struct Tallies(BTreeMap<&'static str, Tally>);

impl Tallies {
    fn entry(&mut self, key: &'static str) -> &mut Tally {
        self.0.entry(key).or_default()
    }
}

impl Measure {
    fn figure(&self, tally: &Tally) -> Figure {
        let offenders = tally.offenders.len() as Figure;
        match self.unit {
            // Upwards: a share may not look smaller than it is.
            Unit::Share => (offenders * 1000).div_ceil((tally.total as Figure).max(1)),
            Unit::Count => offenders,
        }
    }

    fn show(&self, figure: Figure) -> String {
        match self.unit {
            Unit::Share => format!("{}.{}", figure / 10, figure % 10),
            Unit::Count => figure.to_string(),
        }
    }

    fn read(&self, text: &str) -> Option<Figure> {
        match self.unit {
            Unit::Share => {
                let (whole, tenths) = text.split_once('.')?;
                let tenths = tenths.parse::<Figure>().ok().filter(|tenths| *tenths < 10)?;
                Some(whole.parse::<Figure>().ok()? * 10 + tenths)
            }
            Unit::Count => text.parse().ok(),
        }
    }

    /// How far below its limit a figure may be before the limit has to follow: half a point, or one in fifty.
    fn slack(&self, limit: Figure) -> Figure {
        match self.unit {
            Unit::Share => 5,
            Unit::Count => (limit / 50).max(2),
        }
    }

    /// The limit that follows from a figure: never above the old one, and not below the goal.
    fn lowered(&self, figure: Figure, old: Option<Figure>) -> Figure {
        let new = figure.max(self.goal);
        old.map_or(new, |old| old.min(new))
    }

    /// An error when the figure is above its limit, or so far below that the limit has to follow.
    fn check(&self, figure: Figure, limit: Option<Figure>) -> Option<String> {
        let Self { key, title, .. } = self;
        let lowered = self.show(self.lowered(figure, limit));
        let now = self.show(figure);
        let Some(limit) = limit else { return Some(format!("{title}: write `{key} {lowered}` into {LIMITS_FILE}")) };
        if figure > limit {
            let limit = self.show(limit);
            return Some(format!("{title}: {now}, at most {limit}. `WORDS={key}` lists them"));
        }
        let has_to_fall = limit > self.goal && figure + self.slack(limit) < limit;
        has_to_fall.then(|| format!("{title}: {now} now. Write `{key} {lowered}` into {LIMITS_FILE}, so that it stays"))
    }
}

/// Reads the limits: a key and a figure a line.
fn read_limits(text: &str) -> BTreeMap<&'static str, Figure> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let limits = lines.filter_map(|(key, figure)| {
        let measure = MEASURES.iter().find(|measure| measure.key == key)?;
        Some((measure.key, measure.read(figure.trim())?))
    });
    limits.collect()
}

fn write_limits(limits: &BTreeMap<&'static str, Figure>) -> String {
    let head =
        "# Limits of tests/it/words.rs, percent or counts. `UPDATE_LIMITS=1 cargo test --test it words` lowers them.\n";
    let lines = MEASURES.iter().filter_map(|measure| {
        let limit = limits.get(measure.key)?;
        Some(format!("{} {}\n", measure.key, measure.show(*limit)))
    });
    lines.fold(head.to_owned(), |text, line| text + &line)
}

/// Counts the words of a name: `SockJs` and `run_journey` have two.
fn count_words(name: &str) -> usize {
    words_of(name).len()
}

/// Splits a name of whatever case into lower-case words.
fn words_of(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut was_upper = true;
    let is_constant = !name.contains(|letter: char| letter.is_ascii_lowercase());
    for part in name.trim_start_matches("r#").split('_').filter(|part| !part.is_empty()) {
        words.push(String::new());
        for letter in part.chars() {
            let starts = letter.is_ascii_uppercase() && !was_upper && !is_constant;
            if starts && words.last().is_some_and(|word| !word.is_empty()) {
                words.push(String::new());
            }
            was_upper = letter.is_ascii_uppercase();
            if let Some(word) = words.last_mut() {
                word.push(letter.to_ascii_lowercase());
            }
        }
    }
    words
}

/// Names of the whole program: a single file shows neither whose trait it implements nor every field.
#[derive(Default)]
struct Names {
    traits: BTreeSet<String>,
    /// Fields by room and type.
    fields: BTreeSet<(String, String, String)>,
}

/// Collects the [`Names`] of one file.
struct NamesReader<'a> {
    names: &'a mut Names,
    room: &'a str,
}

impl<'ast> Visit<'ast> for NamesReader<'_> {
    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.names.traits.insert(item.ident.to_string());
        visit::visit_item_trait(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        for field in item.fields.iter().filter_map(|field| field.ident.as_ref()) {
            self.names.fields.insert((self.room.to_owned(), item.ident.to_string(), field.to_string()));
        }
    }
}

/// The `impl` or trait around an item.
#[derive(Clone, Default)]
struct Owner {
    /// The type, or the trait.
    name: String,
    /// Whether another crate chose the names.
    is_foreign: bool,
}

/// Counts the names and comments of one file.
struct FileCounter<'a> {
    tallies: &'a mut Tallies,
    names: &'a Names,
    file: &'a SourceFile,
    module: Vec<String>,
    owner: Option<Owner>,
    comments: Vec<Comment>,
    public_types: Vec<(String, String)>,
}

/// A doc comment, and its lines in the file.
struct Comment {
    first: usize,
    last: usize,
    is_inner: bool,
    text: String,
}

impl FileCounter<'_> {
    fn place(&self, line: usize, text: impl Display) -> String {
        format!("src/{}:{line}: {text}", self.file.path)
    }

    fn count_function(&mut self, signature: &syn::Signature, owner: Option<&Owner>) {
        let name = signature.ident.to_string();
        if owner.is_some_and(|owner| owner.is_foreign) {
            return;
        }
        let place = self.place(signature.ident.span().start().line, &name);
        let is_filler = FILLER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || FILLER_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
        self.tallies.entry("fillers").add(is_filler, || place.clone());
        if let (Some(owner), Some(_)) = (owner, signature.receiver()) {
            let repeats = words_of(&owner.name).last().is_some_and(|last| words_of(&name).contains(last));
            self.tallies.entry("repeated_types").add(repeats, || format!("{place} of {}", owner.name));
        }
        let is_getter = signature.receiver().is_some()
            && signature.inputs.len() == 1
            && owner.is_some_and(|owner| {
                let field = (self.file.room().to_owned(), owner.name.clone(), name.clone());
                self.names.fields.contains(&field)
            });
        if !is_getter && !KNOWN_FUNCTIONS.contains(&name.as_str()) {
            self.tallies.entry("functions").add(count_words(&name) == 1, || place);
        }
    }

    fn count_type(&mut self, ident: &Ident, visibility: &Visibility) {
        let name = ident.to_string();
        let place = self.place(ident.span().start().line, &name);
        if KNOWN_TYPES.contains(&name.as_str()) {
            return;
        }
        if !matches!(visibility, Visibility::Inherited) {
            self.public_types.push((name.clone(), place.clone()));
        }
        self.tallies.entry("types").add(count_words(&name) == 1, || place);
    }

    fn count_constant(&mut self, ident: &Ident, ty: &Type) {
        let name = ident.to_string();
        if name == "_" || KNOWN_CONSTANTS.contains(&name.as_str()) {
            return;
        }
        let place = self.place(ident.span().start().line, &name);
        if type_name(ty) == "Duration" {
            let is_bound = DURATION_SUFFIXES.contains(&name.rsplit('_').next().unwrap_or_default());
            self.tallies.entry("durations").add(!is_bound, || place.clone());
        }
        let is_qualified = self.module.last().is_some_and(|module| QUALIFIED_MODULES.contains(&module.as_str()));
        if !is_qualified {
            self.tallies.entry("constants").add(count_words(&name) == 1, || place);
        }
    }

    /// A macro's calls and definitions hold comments too.
    fn read_macro_comments(&mut self, tokens: TokenStream) {
        let mut is_inner = false;
        for token in tokens {
            match token {
                TokenTree::Group(group) => {
                    let attribute = group.stream().into_iter().collect::<Vec<TokenTree>>();
                    if let [TokenTree::Ident(name), TokenTree::Punct(_), TokenTree::Literal(text)] = &attribute[..]
                        && name == "doc"
                        && let Ok(text) = syn::parse_str::<syn::LitStr>(&text.to_string())
                    {
                        let (first, last) = (group.span_open().start().line, group.span_close().end().line);
                        self.add_comment(first, last, is_inner, &text.value());
                    } else {
                        self.read_macro_comments(group.stream());
                    }
                    is_inner = false;
                }
                TokenTree::Punct(punct) => is_inner = punct.as_char() == '!',
                _ => is_inner = false,
            }
        }
    }

    fn add_comment(&mut self, first: usize, last: usize, is_inner: bool, line: &str) {
        if let Some(above) = self.comments.last_mut()
            && above.last + 1 == first
            && above.is_inner == is_inner
        {
            above.last = last;
            above.text = format!("{}\n{line}", above.text);
            return;
        }
        self.comments.push(Comment { first, last, is_inner, text: line.to_owned() });
    }

    fn count_comments(&mut self) {
        for comment in std::mem::take(&mut self.comments) {
            let is_short = comment.text.split_whitespace().count() <= SHORT_COMMENT_WORDS;
            let (path, first) = (&self.file.path, comment.first);
            let place = |text: &str| format!("src/{path}:{first}: {text}");
            self.tallies.entry("short_comments").add(is_short, || place(comment.text.trim()));
            for sentence in sentences(&comment.text) {
                let mut words = sentence.split(|letter: char| !letter.is_alphanumeric() && letter != '\'');
                let first = words.clone().find(|word| !word.is_empty()).unwrap_or_default();
                let line = place(&sentence);
                self.tallies.entry("pronouns").add(PRONOUNS.contains(&first), || line.clone());
                let tells = words.any(|word| TELL_FORMS.contains(&word.to_ascii_lowercase().as_str()));
                self.tallies.entry("tell").add(tells, || line);
            }
        }
    }
}

/// Splits a comment into sentences; code, tables and headings are none.
fn sentences(comment: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    let mut is_code = false;
    for line in comment.lines().map(str::trim) {
        if line.starts_with("```") {
            is_code = !is_code;
            continue;
        }
        let bullet = line.strip_prefix("- ").or_else(|| line.strip_prefix("* "));
        if is_code || line.is_empty() || line.starts_with(['#', '|']) || bullet.is_some() {
            paragraphs.push(String::new());
        }
        if is_code || line.starts_with(['#', '|']) {
            continue;
        }
        if let Some(paragraph) = paragraphs.last_mut() {
            paragraph.push_str(bullet.unwrap_or(line));
            paragraph.push(' ');
        }
    }
    let mut sentences = Vec::new();
    for paragraph in &paragraphs {
        let mut start = 0;
        let words = paragraph.char_indices().filter(|(at, letter)| {
            let is_end = letter.is_ascii_whitespace() && paragraph[..*at].ends_with(['.', '?', '!']);
            let next = paragraph[*at..].trim_start();
            is_end && next.starts_with(|first: char| first.is_uppercase() || "`[\"".contains(first))
        });
        for (at, _) in words.chain([(paragraph.len(), ' ')]) {
            let sentence = paragraph[start..at].trim();
            if !sentence.is_empty() {
                sentences.push(sentence.to_owned());
            }
            start = at;
        }
    }
    sentences
}

fn type_name(ty: &Type) -> String {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default(),
        Type::Reference(reference) => type_name(&reference.elem),
        _ => String::new(),
    }
}

impl<'ast> Visit<'ast> for FileCounter<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let foreign = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
        let is_foreign = foreign.is_some_and(|last| !self.names.traits.contains(&last.ident.to_string()));
        let outer = self.owner.replace(Owner { name: type_name(&item.self_ty), is_foreign });
        visit::visit_item_impl(self, item);
        self.owner = outer;
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.count_type(&item.ident, &item.vis);
        let outer = self.owner.replace(Owner { name: item.ident.to_string(), is_foreign: false });
        visit::visit_item_trait(self, item);
        self.owner = outer;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        // Items inside a function are nobody's.
        let owner = self.owner.take();
        self.count_function(&item.sig, owner.as_ref());
        visit::visit_impl_item_fn(self, item);
        self.owner = owner;
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        let owner = self.owner.take();
        self.count_function(&item.sig, owner.as_ref());
        visit::visit_trait_item_fn(self, item);
        self.owner = owner;
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.count_function(&item.sig, None);
        visit::visit_item_fn(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.count_type(&item.ident, &item.vis);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.count_type(&item.ident, &item.vis);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_union(&mut self, item: &'ast syn::ItemUnion) {
        self.count_type(&item.ident, &item.vis);
        visit::visit_item_union(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.count_type(&item.ident, &item.vis);
        visit::visit_item_type(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.count_constant(&item.ident, &item.ty);
        visit::visit_item_const(self, item);
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.count_constant(&item.ident, &item.ty);
        visit::visit_item_static(self, item);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        if self.owner.as_ref().is_none_or(|owner| !owner.is_foreign) {
            self.count_constant(&item.ident, &item.ty);
        }
        visit::visit_impl_item_const(self, item);
    }

    fn visit_trait_item_const(&mut self, item: &'ast syn::TraitItemConst) {
        self.count_constant(&item.ident, &item.ty);
        visit::visit_trait_item_const(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::NameValue(pair) = &attribute.meta
            && pair.path.is_ident("doc")
            && let Expr::Lit(text) = &pair.value
            && let Lit::Str(text) = &text.lit
        {
            let lines = line_range(attribute);
            let is_inner = matches!(attribute.style, syn::AttrStyle::Inner(_));
            self.add_comment(*lines.start(), *lines.end(), is_inner, &text.value());
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.read_macro_comments(call.tokens.clone());
    }
}

/// Counts names and comments; commits are counted apart.
fn count_sources(files: &[SourceFile]) -> Tallies {
    let mut names = Names::default();
    for file in files {
        let mut reader = NamesReader { names: &mut names, room: file.room() };
        file.items.iter().for_each(|item| reader.visit_item(item));
    }
    let mut tallies = Tallies::default();
    let mut public_types: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    for file in files {
        let mut counter = FileCounter {
            tallies: &mut tallies,
            names: &names,
            file,
            module: file.module.clone(),
            owner: None,
            comments: Vec::new(),
            public_types: Vec::new(),
        };
        file.attributes.iter().for_each(|attribute| counter.visit_attribute(attribute));
        file.items.iter().for_each(|item| counter.visit_item(item));
        counter.count_comments();
        for (name, place) in counter.public_types {
            public_types.entry((file.room(), name)).or_default().push(place);
        }
    }
    for places in public_types.into_values() {
        let is_ambiguous = places.len() > 1;
        for place in places {
            tallies.entry("ambiguous_types").add(is_ambiguous, || place);
        }
    }
    tallies
}

fn count_subjects(log: &str) -> Tally {
    let mut tally = Tally::default();
    for (commit, subject) in log.lines().filter_map(|line| line.split_once(' ')) {
        let is_long = subject.chars().count() > SUBJECT_CHARS_MAX;
        tally.add(is_long, || format!("{commit}: {subject}"));
    }
    tally
}

/// Commits since [`FIRST_COMMIT`], or why they cannot be read: a copy of the sources has no history, a shallow clone
/// not enough.
fn read_log() -> Result<String, String> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        let output = command.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(arguments).output();
        let output = output.map_err(|error| format!("git does not start: {error}"))?;
        let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(printed.into_owned()) } else { Err(errors.trim().to_owned()) }
    };
    git(&["merge-base", "--is-ancestor", FIRST_COMMIT, "HEAD"])
        .map_err(|error| format!("no history since {FIRST_COMMIT} {error}"))?;
    git(&["log", "--no-merges", "--format=%h %s", &format!("{FIRST_COMMIT}..HEAD")])
}

fn table(tallies: &Tallies, limits: &BTreeMap<&'static str, Figure>) -> String {
    let mut text = format!("{:16}{:66}{:>8}{:>15}{:>7}{:>7}\n", "key", "measure", "now", "", "goal", "limit");
    for measure in MEASURES {
        let Some(tally) = tallies.0.get(measure.key) else { continue };
        let limit = limits.get(measure.key).map_or_else(|| "-".to_owned(), |limit| measure.show(*limit));
        let (now, goal) = (measure.show(measure.figure(tally)), measure.show(measure.goal));
        let of = format!("{} of {}", tally.offenders.len(), tally.total);
        let (key, title) = (measure.key, measure.title);
        let written = writeln!(text, "{key:16}{title:66}{now:>8}{of:>15}{goal:>7}{limit:>7}");
        assert!(written.is_ok(), "a string takes every row");
    }
    text
}

#[test]
fn the_words_of_the_program_get_no_worse() {
    let mut tallies = count_sources(&parse_sources(&read_sources()));
    match read_log() {
        Ok(log) => _ = tallies.0.insert("subjects", count_subjects(&log)),
        Err(reason) => println!("commit subjects are not counted: {reason}"),
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(LIMITS_FILE);
    let mut limits = read_limits(&std::fs::read_to_string(&path).unwrap_or_default());
    if let Ok(key) = env::var("WORDS") {
        for (_, tally) in tallies.0.iter().filter(|(known, _)| key == "all" || **known == key) {
            println!("{}", tally.offenders.join("\n"));
        }
    }
    let counted = MEASURES.iter().filter_map(|measure| Some((measure, tallies.0.get(measure.key)?)));
    if env::var_os("UPDATE_LIMITS").is_some() {
        for (measure, tally) in counted.clone() {
            let old = limits.get(measure.key).copied();
            limits.insert(measure.key, measure.lowered(measure.figure(tally), old));
        }
        std::fs::write(&path, write_limits(&limits)).expect("the file of limits");
    }
    println!("{}", table(&tallies, &limits));
    let wrong: Vec<String> = counted
        .filter_map(|(measure, tally)| measure.check(measure.figure(tally), limits.get(measure.key).copied()))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The offenders of a measure in one file, without their places, and the total.
fn offenders(key: &str, text: &str) -> (Vec<String>, usize) {
    let tallies = count_sources(&parse_sources(&[("edge/a.rs", text)]));
    let tally = tallies.0.get(key);
    let names = tally.map(|tally| tally.offenders.iter().map(|line| line.split_once(": ").unwrap_or_default().1));
    (names.into_iter().flatten().map(str::to_owned).collect(), tally.map_or(0, |tally| tally.total))
}

#[test]
fn functions_are_counted_but_for_those_that_others_named() {
    let text = "struct Lease { owner: u8 } trait Bus { fn leave(); }
        impl Lease { fn owner(&self) {} fn age(&self) {} fn new() {} fn renew_all(&self) { fn inner() {} } }
        impl Bus for Lease { fn leave() {} } impl fmt::Display for Lease { fn fmt() {} fn width() {} }
        fn owner() {} fn publish_event() {} #[test] fn holds() {} #[cfg(test)] mod tests { fn helper() {} }";
    let (names, total) = offenders("functions", text);
    assert_eq!(names, ["leave", "age", "inner", "leave", "owner"]);
    assert_eq!(total, 7);
    let (names, total) = offenders("repeated_types", "impl KubeLease { fn renew_lease(&self) {} fn renew(&self) {} }");
    assert_eq!((names, total), (vec!["renew_lease of KubeLease".to_owned()], 2));
    let (names, total) = offenders("fillers", "fn get_all() {} fn forget_all() {} fn app_data() {}");
    assert_eq!((names, total), (vec!["get_all".to_owned(), "app_data".to_owned()], 3));
}

#[test]
fn types_are_counted() {
    let text = "pub struct SockJs; pub enum Standing {} type Error = u8; trait Door {} mod b { pub struct Standing; }
        impl Iterator for SockJs { type Item = u8; } struct HTTP; #[cfg(test)] struct Fake;";
    assert_eq!(offenders("types", text).0, ["Standing", "Door", "Standing", "HTTP"]);
    assert_eq!(offenders("types", text).1, 5);
    assert_eq!(offenders("ambiguous_types", text).0, ["Standing", "Standing"]);
    assert_eq!(offenders("ambiguous_types", "pub struct A; struct B; mod b { struct B; }").0, [""; 0]);
}

#[test]
fn constants_are_counted() {
    let text = "const GRACE: Duration = X; pub const FAREWELL: std::time::Duration = X; const QUEUE_MAX: usize = 1;
        mod code { pub const OTHER: u16 = 1; } impl A { const ALL: u8 = 1; const FIRST: u8 = 1; } static SHARED: u8 = 1;
        impl Default for A { const B: u8 = 1; } fn f() { const RETRY_DELAY: Duration = X; } const _: () = ();";
    assert_eq!(offenders("constants", text).0, ["GRACE", "FAREWELL", "FIRST", "SHARED"]);
    assert_eq!(offenders("constants", text).1, 6);
    assert_eq!(offenders("durations", text), (vec!["FAREWELL".to_owned()], 3));
}

#[test]
fn comments_are_counted_by_sentence() {
    let text = "//! What this is: a file. Whoever reads it is told more.\n//!\n//! Where it ends, e.g. here.\n
        /// The shard.\n struct A {\n /// Its name,\n /// in lower case.\n name: u8, }
        made! {\n /// Those.\n B }\n /// # Errors\n /// ```\n /// What?\n /// ```\n /// - Nobody tells. Whatever.\n fn f() {}";
    let (comments, total) = offenders("short_comments", text);
    assert_eq!((comments, total), (vec!["The shard.".to_owned(), "Those.".to_owned()], 5));
    let (pronouns, total) = offenders("pronouns", text);
    assert_eq!(
        pronouns,
        ["What this is: a file.", "Whoever reads it is told more.", "Where it ends, e.g. here.", "Those."]
    );
    assert_eq!(total, 8);
    assert_eq!(offenders("tell", text).0, ["Whoever reads it is told more.", "Nobody tells."]);
}

#[test]
fn long_subjects_are_counted() {
    let log = format!("1a edge: admit {}\n2b edge: {}\n", "x".repeat(60), "ü".repeat(67));
    let tally = count_subjects(&log);
    assert_eq!((tally.offenders.len(), tally.total), (1, 2));
    assert!(tally.offenders[0].starts_with("2b: edge"), "72 characters are allowed");
}

#[test]
fn a_limit_only_falls() {
    let [share, count] = [&MEASURES[0], &MEASURES[5]];
    assert_eq!((share.unit, count.unit), (Unit::Share, Unit::Count));
    let over = share.check(803, Some(802)).unwrap_or_default();
    assert!(over.contains("80.3, at most 80.2. `WORDS=functions`"), "{over}");
    assert_eq!(share.check(797, Some(802)), None);
    let under = share.check(796, Some(802)).unwrap_or_default();
    assert!(under.contains("Write `functions 79.6` into"), "{under}");
    assert_eq!(share.check(200, Some(400)), None, "the goal is reached");
    assert!(share.check(200, Some(500)).is_some_and(|wrong| wrong.contains("`functions 40.0`")));
    assert!(share.check(200, None).is_some_and(|wrong| wrong.contains("`functions 40.0`")));
    assert!(
        count.check(1, Some(0)).is_some() && count.check(0, Some(0)).is_none() && count.check(0, Some(3)).is_some()
    );
    assert_eq!((share.lowered(900, Some(802)), share.lowered(700, Some(802))), (802, 700));
    let limits = BTreeMap::from([(share.key, 802), (count.key, 537)]);
    assert_eq!(read_limits(&write_limits(&limits)), limits);
    assert_eq!(read_limits("functions 80.22\nothers 1\nshort_comments many"), BTreeMap::new());
    let tally = Tally { total: 3, offenders: vec![String::new()] };
    assert_eq!((share.figure(&tally), count.figure(&tally)), (334, 1));
}
