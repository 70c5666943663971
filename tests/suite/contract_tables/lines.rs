//! Writes the tables and the compiled descriptors out as one readable line for each fact about the wire.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

const SERVICES_HEADER: [&str; 4] = ["service", "method", "request", "response"];
const TYPES_HEADER: [&str; 8] = [
    "file",
    "kind",
    "type",
    "name",
    "number",
    "field_type",
    "label",
    "oneof",
];

/// Types of this package count as reachable: plain integer fields carry their numbers.
const NUMBERS_PACKAGE: &str = "ski.";

/// One line for each fact about the wire.
pub(super) type Lines = BTreeSet<String>;

/// What one row of the tables says about a field or an enum value.
struct Member<'a> {
    file: &'a str,
    is_field: bool,
    owner: String,
    name: &'a str,
    number: i32,
    field_type: String,
    label: &'a str,
    oneof: &'a str,
}

impl Member<'_> {
    fn line(&self) -> String {
        let Self {
            file,
            owner,
            name,
            number,
            field_type,
            label,
            oneof,
            ..
        } = self;
        if self.is_field {
            format!(
                "field {owner}.{name} = {number}, type {field_type}, label '{label}', oneof '{oneof}' ({file})"
            )
        } else {
            format!("enum value {owner}.{name} = {number} ({file})")
        }
    }

    fn owner_line(&self) -> String {
        type_line(self.is_field, &self.owner, self.file)
    }
}

fn type_line(is_message: bool, name: &str, file: &str) -> String {
    format!(
        "{} {name} ({file})",
        if is_message { "message" } else { "enum" }
    )
}

fn service_line(service: &str) -> String {
    format!("service {service}")
}

fn method_line(service: &str, method: &str, request: &str, response: &str) -> String {
    format!("method {service}/{method}: {request} -> {response}")
}

fn rows<'a, const N: usize>(table: &'a str, header: &[&str; N]) -> Vec<[&'a str; N]> {
    let mut rows = table.lines().map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        <[&str; N]>::try_from(cells).unwrap_or_else(|_| panic!("not {N} columns: {line}"))
    });
    assert_eq!(rows.next().as_ref(), Some(header));
    rows.collect()
}

fn members<'a>(types: &[&'a str]) -> BTreeMap<&'a str, Vec<Member<'a>>> {
    let mut members: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in types.iter().flat_map(|table| rows(table, &TYPES_HEADER)) {
        let [file, kind, owner, name, number, field_type, label, oneof] = row;
        assert!(matches!(kind, "field" | "enum"), "{row:?}");
        members.entry(owner).or_default().push(Member {
            file,
            is_field: kind == "field",
            owner: owner.to_owned(),
            name,
            number: number
                .parse()
                .unwrap_or_else(|_| panic!("not a number: {row:?}")),
            field_type: field_type.to_owned(),
            label,
            oneof,
        });
    }
    members
}

/// The types that a service can carry, and those that only give numbers a name.
fn reachable<'a>(
    services: &'a str,
    members: &'a BTreeMap<&str, Vec<Member<'_>>>,
) -> BTreeSet<&'a str> {
    let carried = rows(services, &SERVICES_HEADER)
        .into_iter()
        .flat_map(|[_, _, request, response]| [request, response])
        .map(|name| name.trim_start_matches("stream "));
    let numbers = members
        .keys()
        .copied()
        .filter(|name| name.starts_with(NUMBERS_PACKAGE));
    let mut open: Vec<&str> = carried.chain(numbers).collect();
    let mut reached = BTreeSet::new();
    while let Some(name) = open.pop() {
        if let Some(rows) = members.get(name)
            && reached.insert(name)
        {
            open.extend(rows.iter().map(|row| row.field_type.as_str()));
        }
    }
    reached
}

/// The types that the tables describe and no service can carry: what clients keep for themselves.
pub(super) fn private_types(services: &str, types: &[&str]) -> Vec<String> {
    let members = members(types);
    let reached = reachable(services, &members);
    let private = members.keys().filter(|name| !reached.contains(*name));
    private.map(|name| (*name).to_owned()).collect()
}

/// What the tables say of everything reachable from the services.
pub(super) fn of_tables(services: &str, types: &[&str]) -> Lines {
    let members = members(types);
    let methods = rows(services, &SERVICES_HEADER).into_iter().flat_map(
        |[service, method, request, response]| {
            let service = format!("skiserver.{service}");
            let line = method_line(&service, method, request, response);
            [service_line(&service), line]
        },
    );
    reachable(services, &members)
        .into_iter()
        .flat_map(|name| &members[name])
        .flat_map(|row| [row.line(), row.owner_line()])
        .chain(methods)
        .collect()
}

/// What was compiled, reachable or not.
pub(super) fn of_descriptors(set: &FileDescriptorSet) -> Lines {
    let mut lines = Lines::new();
    for file in &set.file {
        for message in &file.message_type {
            add_message(&mut lines, file.name(), file.package(), message);
        }
        for an_enum in &file.enum_type {
            add_enum(&mut lines, file.name(), file.package(), an_enum);
        }
        for service in &file.service {
            add_service(&mut lines, file.package(), service);
        }
    }
    lines
}

fn add_message(lines: &mut Lines, file: &str, scope: &str, message: &DescriptorProto) {
    let owner = format!("{scope}.{}", message.name());
    lines.insert(type_line(true, &owner, file));
    for field in &message.field {
        let oneof = field.oneof_index.map_or("", |index| {
            message.oneof_decl[usize::try_from(index).unwrap()].name()
        });
        let member = Member {
            file,
            is_field: true,
            owner: owner.clone(),
            name: field.name(),
            number: field.number(),
            field_type: type_name(field),
            label: label(field),
            oneof,
        };
        lines.insert(member.line());
    }
    for nested in &message.nested_type {
        add_message(lines, file, &owner, nested);
    }
    for nested in &message.enum_type {
        add_enum(lines, file, &owner, nested);
    }
}

fn add_enum(lines: &mut Lines, file: &str, scope: &str, an_enum: &EnumDescriptorProto) {
    let owner = format!("{scope}.{}", an_enum.name());
    lines.insert(type_line(false, &owner, file));
    for value in &an_enum.value {
        let member = Member {
            file,
            is_field: false,
            owner: owner.clone(),
            name: value.name(),
            number: value.number(),
            field_type: String::new(),
            label: "",
            oneof: "",
        };
        lines.insert(member.line());
    }
}

fn add_service(lines: &mut Lines, package: &str, service: &ServiceDescriptorProto) {
    let name = format!("{package}.{}", service.name());
    lines.insert(service_line(&name));
    for method in &service.method {
        let request = carried(method.client_streaming(), method.input_type());
        let response = carried(method.server_streaming(), method.output_type());
        lines.insert(method_line(&name, method.name(), &request, &response));
    }
}

fn carried(is_stream: bool, name: &str) -> String {
    let name = name.trim_start_matches('.');
    if is_stream {
        format!("stream {name}")
    } else {
        name.to_owned()
    }
}

fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => field.type_name().trim_start_matches('.').to_owned(),
        scalar => scalar
            .as_str_name()
            .trim_start_matches("TYPE_")
            .to_lowercase(),
    }
}

fn label(field: &FieldDescriptorProto) -> &'static str {
    match field.label() {
        Label::Repeated => "repeated",
        Label::Required => "required",
        Label::Optional if field.proto3_optional() => "optional",
        Label::Optional => "",
    }
}

/// The lines that only one side has.
pub(super) fn compare(descriptors: &Lines, tables: &Lines) -> Vec<String> {
    let surplus = descriptors
        .difference(tables)
        .map(|line| format!("only compiled: {line}"));
    let missing = tables
        .difference(descriptors)
        .map(|line| format!("only in the tables: {line}"));
    surplus.chain(missing).collect()
}
