{{- define "egress-enforcer.labels" -}}
app.kubernetes.io/name: egress-agent
{{- end -}}
