"""etcd's messages of a watch as protobuf's own library has them (etcdserverpb/rpc.proto, mvccpb/kv.proto)."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELDS = {
    "ResponseHeader": ("uint64 cluster_id 1", "uint64 member_id 2", "int64 revision 3", "uint64 raft_term 4"),
    "KeyValue": (
        *("bytes key 1", "int64 create_revision 2", "int64 mod_revision 3", "int64 version 4", "bytes value 5"),
        "int64 lease 6",
    ),
    "Event": (".t.Kind type 1", ".t.KeyValue kv 2", ".t.KeyValue prev_kv 3"),
    "WatchCreateRequest": ("bytes key 1", "bytes range_end 2", "int64 start_revision 3", "bool progress_notify 4"),
    "WatchCancelRequest": ("int64 watch_id 1",),
    "WatchRequest": (".t.WatchCreateRequest create_request 1", ".t.WatchCancelRequest cancel_request 2"),
    "WatchResponse": (
        *(".t.ResponseHeader header 1", "int64 watch_id 2", "bool created 3", "bool canceled 4"),
        *("int64 compact_revision 5", "string cancel_reason 6", "bool fragment 7", "*.t.Event events 11"),
    ),
}
_KINDS = {"int64": 3, "uint64": 4, "bool": 8, "string": 9, "bytes": 12}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    kind = file.enum_type.add(name="Kind")
    kind.value.add(name="PUT", number=0)
    kind.value.add(name="DELETE", number=1)
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for text in fields:
            type_name, field_name, number = text.lstrip("*").split()
            field = message.field.add(name=field_name, json_name=field_name, number=int(number))
            field.label = 3 if text.startswith("*") else 1
            if type_name in _KINDS:
                field.type = _KINDS[type_name]
            else:
                field.type, field.type_name = (14 if type_name == ".t.Kind" else 11), type_name
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def message(name: str) -> Any:
    """The class of a message."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"t.{name}"))
