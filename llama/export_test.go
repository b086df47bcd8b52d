package llama

// BuiltinTemplate has llama.cpp write a conversation in a format of its own.
var BuiltinTemplate = builtinTemplate
